"""One link of a chain as text: the file, whether it equals its record, and how it was made."""

import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from polygrain.audit.account import Account
from polygrain.audit.evidence import Evidence, FileState
from polygrain.provenance.lock import LOCK
from polygrain.provenance.sidecar import data_hash
from polygrain.provenance.stage import Stage, ancestry

WIDTH = 120
INDENT = 12
# Facts of a process rather than of its machine: whether a job loaded torch decides them.
_OF_PROCESS = ("capability.", "libraries", "threads")


@dataclass
class Printer:
    """Writes links of the chain; machines are lettered in the order of their appearance."""

    evidence: Evidence
    full: bool
    faults: list[str] = field(default_factory=list)
    verified: int = 0
    """Files whose hash equals the recorded one."""
    absent: int = 0
    machines: dict[tuple[tuple[str, str], ...], str] = field(default_factory=dict)

    def link(self, title: str, stage: Stage, paths: Sequence[Path], inputs: Sequence[Path]) -> list[str]:
        """The lines of one job: `paths` are the files of interest, `inputs` those of its inputs that matter here."""
        lines = []
        for path in paths:
            state = self.evidence.state(stage, path)
            lines.append(labelled(title, str(path)))
            lines.append(labelled("", f"{self._hashes(state)}  {self._verdict(stage, state)}"))
            title = ""
        faults = self.evidence.faults(stage, inputs)
        self.faults += faults
        lines += [line for fault in faults for line in wrapped("  WRONG", fault)]
        lines += [line for remark in self.evidence.remarks(stage) for line in wrapped("  note", remark)]
        lines += wrapped("  from", self._decided(stage))
        account = self.evidence.account(stage)
        lines += wrapped("  made", self._made(account) if account else "unknown: no record here, and none is published")
        lines += wrapped("  by", account.command) if account else []
        lines += wrapped("  rebuild", f"snakemake --cores all --force {paths[0]}")
        locked = self.evidence.lock.find(stage)
        lines += wrapped(
            "  fetch", f"dvc pull {stage.name}" if locked else f"not in {LOCK}; `polygrain record` puts it there"
        )
        return lines

    def _hashes(self, state: FileState) -> str:
        """The file's hashes; when it is not here, the recorded ones."""
        sha256 = state.now.sha256 if state.now else state.recorded
        md5 = state.now.md5 if state.now else state.locked
        parts = [f"{name} {self.short(value)}" for name, value in (("sha256", sha256), ("md5", md5)) if value]
        return "  ".join(parts) or "no hash is known"

    def _verdict(self, stage: Stage, state: FileState) -> str:
        record = "its record" if self.evidence.has_record(stage) else "the published crate"
        if state.now is None:
            self.absent += 1
            known = [text for value, text in ((state.recorded, record), (state.locked, str(LOCK))) if value]
            return f"not here; hash from {' and '.join(known)}" if known else "not here"
        answers = [(state.as_recorded, record), (state.as_locked, str(LOCK))]
        if any(answer is False for answer, _ in answers):
            return ", ".join(
                f"{'as' if answer else 'NOT as'} in {text}" for answer, text in answers if answer is not None
            )
        agreeing = [text for answer, text in answers if answer]
        self.verified += bool(agreeing)
        return f"verified: as in {' and '.join(agreeing)}" if agreeing else "hashed; no record to compare with"

    def _decided(self, stage: Stage) -> str:
        """The hashes of what decides staleness, as the job met them, else as the checkout wants them."""
        parts = []
        named = (("config", stage.config_path), ("code", stage.code_path), ("environment", stage.environment_path))
        for name, path in named:
            state = self.evidence.state(stage, path)
            hashed = state.recorded or (state.now.sha256 if state.now else "")
            parts.append(f"{name} {self.short(hashed) or 'unknown'}")
        return "  ".join([*parts, f"data {self._data(stage)}"])

    def _data(self, stage: Stage) -> str:
        """The data hash over the manifests behind a stage."""
        manifests = {}
        for maker in ancestry(stage, self.evidence.makers):
            for path in (path for path in maker.outputs if path.name == "manifest.json"):
                state = self.evidence.state(maker, path)
                hashed = state.now.sha256 if state.now else state.recorded
                if not hashed:
                    return "unknown"
                manifests[path.as_posix()] = {"sha256": hashed}
        found = data_hash(manifests)
        return self.short(found["sha256"]) if found else "none"

    def _made(self, account: Account) -> str:
        began = datetime.fromisoformat(account.started).strftime("%Y-%m-%d %H:%M:%S %Z")
        state = " with uncommitted changes" if account.dirty else ""
        commit = f"commit {self.short(account.commit)}{state}" if account.commit else "outside git"
        kernels = account.machine.get("capability.torch")
        return ", ".join(
            [
                f"{began} in {account.wall_seconds:.1f} s ({account.cpu_seconds:.1f} s of processor)",
                f"{account.peak_memory_mib:.0f} MiB",
                commit,
                f"machine {self._letter(account)}",
                f"threads {account.machine.get('threads', 'unknown')}",
                *([f"kernels {kernels}"] if kernels else []),
            ]
        )

    def _letter(self, account: Account) -> str:
        facts = tuple((name, value) for name, value in account.machine.items() if not name.startswith(_OF_PROCESS))
        return self.machines.setdefault(facts, string.ascii_uppercase[len(self.machines) % 26])

    def legend(self) -> list[str]:
        """The machines by letter, and where two of them differ."""
        lines = []
        for facts, letter in self.machines.items():
            named = dict(facts)
            parts = [named.get(name, "") for name in ("processor", "accelerator", "platform", "libc")]
            parts.append(f"Python {named.get('python', 'unknown')}")
            lines += wrapped(f"machine {letter}", ", ".join(part for part in parts if part))
            if "instructions" in named:
                lines += wrapped("  offers", named["instructions"])
            for group, joint in (("packages", " "), ("pins", "=")):
                own = {name: value for name, value in named.items() if name.startswith(f"{group}.")}
                texts = (f"{name.removeprefix(f'{group}.')}{joint}{value}" for name, value in own.items())
                lines += wrapped(f"  {group}", ", ".join(texts))
        return lines

    def short(self, hashed: str) -> str:
        """Twelve digits of a hash, or all of them."""
        return hashed if self.full else hashed[:12]


def labelled(label: str, text: str) -> str:
    """A line with its label in the first column."""
    return f"{label:<{INDENT}}{text}"


def wrapped(label: str, text: str) -> list[str]:
    """The same over several lines if need be; words are kept whole, so that commands can be copied."""
    lines = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    return [labelled(label, lines[0]), *(labelled("", line) for line in lines[1:])]

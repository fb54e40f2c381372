"""Checkouts for end-to-end tests: the files of this repository in a git repository of their own."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = "reports/smoke-seeds1/table1.pdf"
CLAIMS = (
    "data/*/*.np[yz]",
    "data/*/manifest.json",
    "runs/**/*.safetensors",
    "runs/**/metrics.jsonl",
    "runs/**/results/*",
    "reports/smoke*/table1.*",
)


@dataclass(frozen=True)
class Checkout:
    """A checkout in a temporary folder, with commands that run in it."""

    root: Path

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), **variables}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(
                f"{command} gave {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}{self.logs()}"
            )
        return done

    def build(self, target: str = SMOKE, cores: int = 2, **variables: str) -> str:
        done = self.run("snakemake", "--cores", str(cores), target, **variables)
        return done.stdout + done.stderr

    def planned(self, target: str = SMOKE) -> dict[str, int]:
        """Jobs that a dry run would execute, by rule."""
        done = self.run("snakemake", "-n", "--cores", "1", target)
        jobs: dict[str, int] = {}
        counting = False
        for line in (done.stdout + done.stderr).splitlines():
            words = line.split()
            if words[:2] == ["job", "count"]:
                counting = True
            elif counting and len(words) == 2 and words[1].isdigit():
                jobs[words[0]] = int(words[1])
            elif counting and not words:
                break
        return {rule: count for rule, count in jobs.items() if rule != "total"}

    def claims(self) -> dict[str, bytes]:
        files = {path for pattern in CLAIMS for path in self.root.glob(pattern) if path.is_file()}
        return {str(path.relative_to(self.root)): path.read_bytes() for path in sorted(files)}

    def logs(self) -> str:
        return "".join(f"\n--- {path}\n{path.read_text()[-1500:]}" for path in self.root.glob("logs/**/*.log"))


def make_checkout(root: Path) -> Checkout:
    """Copy every file that git tracks or would track, and commit them in a fresh repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    checkout = Checkout(root)
    checkout.run("git", "init", "-q", "-b", "main")
    checkout.run("git", "config", "user.name", "tester")
    checkout.run("git", "config", "user.email", "tester@localhost")
    checkout.run("git", "add", "-A")
    checkout.run("git", "commit", "-q", "-m", "start")
    return checkout

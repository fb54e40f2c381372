"""Whether every change of a result in the history of `dvc.lock` is explained by a change of what it was made from.

For each commit and output one verdict:

- *unchanged*, *new*, *removed*; *merged*: a merge took the inputs and bytes of its other parent.
- *explained*: the bytes changed, and so did a dependency, a parameter or the command of the stage that makes them.
- *attested*: the code changed and the bytes did not; old and new code were run and compared (`polygrain attest`).
  Bytes that changed together with attested code are unexplained.
- *returned*: inputs and bytes are those of an earlier commit, as after a reverted edit.
- *unexplained*: the same inputs gave other bytes before, anywhere in the history; or no input that the lock calls
  changed can have changed (*refuted*). Either the build is not deterministic, or somebody edited a result.

and for each commit its contradictions:

- *inconsistent*: a stage used another file than the one that its maker made, in the same lock.
- *refuted*: the lock says that an input changed, but git shows that its sources did not; or an input that git itself
  holds has other bytes there.
- *published*: a copy in git that is not the recorded output.
- *broken*: the lock cannot be read.

What this proves: no result was replaced alone, and no hash of code, configuration or environment was edited while the
sources stayed as they were. What it does not prove: that the sources of a commit give the hashes in its lock (that
commit's own `check-lock` checks that: `polygrain audit --checkout`), and that the code gives the bytes (a rebuild
checks that: `polygrain audit --rebuild`). The first record of a result is trusted; only a rebuild can refute it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polygrain.audit.locks import Snapshot
from polygrain.audit.repository import Commit
from polygrain.provenance.lock import Locked

Kind = Literal["new", "attested", "explained", "returned", "merged", "removed", "unexplained"]
"""In the order in which an audit prints them."""


@dataclass(frozen=True)
class Cause:
    """One input of a stage that is not what it was."""

    kind: Literal["dependency", "parameter", "command"]
    file: str
    """Path of the dependency or of the configuration; empty for the command."""
    key: str = ""
    """Of a parameter."""
    before: str | None = None
    after: str | None = None
    sources: tuple[str, ...] = ()
    """Files in git that explain the change of a generated input."""
    refuted: str = ""
    """Why the input cannot have changed; empty where it can."""
    upstream: bool = False
    """Whether the dependency is an output of another stage; the reason is then with that stage."""


@dataclass(frozen=True)
class Change:
    """What happened to one output in one commit."""

    output: str
    stage: str
    kind: Kind
    causes: tuple[Cause, ...] = ()
    earlier: Commit | None = None
    """The commit that had the same inputs before, or the parent that a merge took the output from."""
    maker: Locked | None = None
    """The stage as this commit records it; None when the output was removed."""


@dataclass(frozen=True)
class Contradiction:
    """A contradiction within one commit."""

    kind: Literal["inconsistent", "refuted", "published", "broken"]
    line: str


@dataclass(frozen=True)
class Judged:
    """The verdicts on one commit that changed the lock or a published copy."""

    state: Snapshot
    unchanged: int
    changes: tuple[Change, ...]
    findings: tuple[Contradiction, ...]

    def of(self, kind: Kind) -> list[Change]:
        """The changes of one kind."""
        return [change for change in self.changes if change.kind == kind]


@dataclass(frozen=True)
class Audit:
    """The verdicts on a history."""

    states: Sequence[Snapshot]
    entries: Sequence[Judged]
    shallow: bool

    @property
    def unexplained(self) -> list[Change]:
        """Every change that nothing explains."""
        return [change for entry in self.entries for change in entry.of("unexplained")]

    @property
    def findings(self) -> list[Contradiction]:
        """Every contradiction."""
        return [finding for entry in self.entries for finding in entry.findings]

    def held(self, change: Change) -> bool:
        """Whether the last commit still has the inputs and the bytes that a change brought in."""
        now, made = self.states[-1].lock.makers.get(change.output), change.maker
        if now is None or made is None:
            return False
        return (now.inputs, now.outputs[change.output]) == (made.inputs, made.outputs[change.output])

    @property
    def holds(self) -> bool:
        """Whether nothing is unexplained and nothing contradicts itself."""
        return not self.unexplained and not self.findings

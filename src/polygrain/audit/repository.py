"""Read a git repository's history with public git commands: one `git log`, and objects by name from two processes.

A process for each object would take minutes over a thousand commits; `git cat-file --batch` answers in microseconds.
On 161 commits dulwich takes four times as long, and longer still to import.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError
from polygrain.provenance.git import GIT, git, without_places

_FIELDS = ("%H", "%P", "%cs", "%s")


@dataclass(frozen=True)
class Commit:
    """One commit; `parents` in git's order, the branch that was merged into first."""

    id: str
    parents: tuple[str, ...]
    date: str
    """Day of the commit, YYYY-MM-DD."""
    subject: str

    @property
    def short(self) -> str:
        """The first seven digits of the hash."""
        return self.id[:7]


class Repository:
    """The git repository that holds the project at `root`; a context manager. Paths are relative to `root`.

    Raises UserError outside a git repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = git(root, "rev-parse", "--show-prefix").rstrip("\n")
        self._trees: dict[str, dict[str, tuple[bool, str]]] = {}

    def __enter__(self) -> "Repository":
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [*GIT, "cat-file", "--batch"]
        self._process = subprocess.Popen(command, cwd=self.root, env=without_places(), **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @property
    def shallow(self) -> bool:
        """Whether this is a shallow clone: what lies before its first commits is not here."""
        return git(self.root, "rev-parse", "--is-shallow-repository").strip() == "true"

    def commits(self) -> list[Commit]:
        """All commits behind HEAD, parents before children. Raises UserError when there is none."""
        form = "--format=" + "%x00".join(_FIELDS) + "%x00"
        command = ("log", "-z", "--topo-order", "--reverse", "--no-show-signature", form, "HEAD", "--")
        fields = git(self.root, *command).split("\0")
        # a record ends with the separator of its last field and that of -z
        starts = range(0, len(fields) - 1, len(_FIELDS) + 1)
        rows = (fields[start : start + len(_FIELDS)] for start in starts)
        return [Commit(row[0], tuple(row[1].split()), row[2], printable(row[3])) for row in rows]

    def find(self, commit: str, path: str) -> str | None:
        """Git's name for what a commit holds at `path`, a file or a folder; None where it holds nothing."""
        return self._ask(f"{commit}:{self._prefix}{path}")[0]

    def read(self, blob: str) -> bytes:
        """The content of an object. Raises UserError when the repository lacks it."""
        name, content = self._ask(blob)
        if name is None:
            raise UserError(f"{self.root}: git lacks object {blob}; run `git fsck`, or clone the repository again")
        return content

    def _ask(self, name: str) -> tuple[str | None, bytes]:
        """Git's own name for an object, and its content; None where there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{name}\n".encode())
        stdin.flush()
        header = stdout.readline().rstrip(b"\n")
        if not header:
            raise UserError(
                f"{self.root}: git ended while it read {name}; if this clone was made with --filter, its other objects"
                " are at the remote: go online, or fetch them all with"
                " `git config --unset remote.origin.partialclonefilter && git fetch --refetch`"
            )
        if header.endswith(b" missing"):
            return None, b""
        own, _, size = header.split()
        return own.decode(), stdout.read(int(size) + 1)[:-1]

    def files(self, name: str | None) -> dict[str, str]:
        """All files below a folder object: path -> object; those of no folder are none."""
        found: dict[str, str] = {}
        for entry, (is_folder, inner) in self._tree(name).items() if name else ():
            found |= (
                {f"{entry}/{path}": blob for path, blob in self.files(inner).items()} if is_folder else {entry: inner}
            )
        return found

    def _tree(self, name: str) -> dict[str, tuple[bool, str]]:
        """The entries of a folder object: name -> whether it is a folder itself, and its object."""
        if name not in self._trees:
            self._trees[name] = dict(_entries(self.read(name), len(name) // 2))
        return self._trees[name]


def _entries(content: bytes, width: int) -> Iterator[tuple[str, tuple[bool, str]]]:
    """Cut a tree object: mode, space, name, NUL, hash of `width` bytes."""
    position = 0
    while position < len(content):
        zero = content.index(b"\0", position)
        mode, _, name = content[position:zero].partition(b" ")
        position = zero + 1 + width
        yield name.decode(errors="replace"), (mode == b"40000", content[zero + 1 : position].hex())


def printable(text: str) -> str:
    """Replace control characters: a commit's subject may hold any character."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)

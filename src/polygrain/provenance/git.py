"""Read-only git commands; an error carries git's own message.

Git reads the repository of the given folder, also inside a git hook whose environment names another one, and also if
the folder belongs to another user (a container, a shared folder).
"""

import os
import shutil
import subprocess
from pathlib import Path

from polygrain.provenance.errors import UserError

GIT = (
    *("git", "--no-pager", "--no-optional-locks", "-c", "safe.directory=*", "-c", "core.fsmonitor=false"),
    # replacement objects would change the history that git shows on this machine
    "--no-replace-objects",
)
# Set inside git hooks; they would point every git command at the user's own repository.
_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")


def without_places() -> dict[str, str]:
    """The environment without what names another repository."""
    return {name: value for name, value in os.environ.items() if name not in _PLACES}


def git_bytes(root: Path, *arguments: str) -> bytes:
    """Output of a git command in `root`. Raises UserError with all of git's reason when it fails."""
    try:
        done = subprocess.run([*GIT, *arguments], cwd=root, capture_output=True, env=without_places())
    except FileNotFoundError:
        raise UserError("git is not installed; install it") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{root}: git {arguments[0]} failed: {' '.join(said) or 'no message'}")
    return done.stdout


def git(root: Path, *arguments: str) -> str:
    """The same as text; a byte that is no UTF-8 becomes a replacement character."""
    return git_bytes(root, *arguments).decode(errors="replace")


def inside(root: Path) -> bool:
    """Whether there is git, and `root` lies in a repository, its own or another one."""
    folders = (root, *root.resolve().parents)
    return shutil.which("git") is not None and any((folder / ".git").exists() for folder in folders)


def tracked(root: Path) -> bool:
    """Whether git tracks files of the folder `root`; not so for an archive unpacked inside another repository.

    False outside git and without git. Raises UserError when git cannot read the repository.
    """
    return inside(root) and git(root, "ls-files", "-z", "--", ".") != ""

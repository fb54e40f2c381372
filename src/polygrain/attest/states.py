"""The two states of the code that are compared, each as a project of its own in a scratch folder.

The old one is the commit whose staleness files are those that dvc.lock recorded. Its own Snakemake writes them, so the
code is hashed by the rules of that commit. The new one is a copy of the checkout, so that edits during the run have no
effect.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from polygrain.attest.children import Children
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.git import git
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import LOCK
from polygrain.provenance.scratch import switch

# workflow/schemas: in commits before the configuration was held against pydantic models
COPIED = ("Snakefile", "requirements.lock", "params", "src/polygrain", "workflow/schemas")
_TRIED = 12
"""Commits in which the recorded code is searched, from the one that recorded it backwards."""


def copy_checkout(project: Project, root: Path) -> Project:
    """Copy what decides a run's bits to `root` and link the packed data."""
    for name in COPIED:
        source, copy = project.root / name, root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, copy)
    link_data(project.root, root)
    return Project(root)


def link_data(source: Path, root: Path) -> None:
    """Link each file of the packed data sets; the folders are the scratch project's own, which writes into them."""
    for path in (source / "data").glob("*/*"):
        if path.is_file() or path.name == "shards":
            link = root / "data" / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(link):
                link.symlink_to(path.resolve())


def find_old(
    project: Project, clone: Path, recorded: dict[Path, str], targets: Sequence[Path], commit: str, children: Children
) -> str:
    """Bring a clone to the commit whose staleness files have the MD5s `recorded`; return the commit.

    `targets` are files whose staleness files that state shall write. `commit`: the only one to try, empty for a search.
    Raises UserError when none fits.
    """
    tried = [commit] if commit else list(_candidates(project, next(iter(recorded.values()))))
    reason = f"no commit recorded it in {LOCK}"
    for candidate in tried:
        switch(clone, candidate)
        link_data(project.root, clone)
        reason = _objection(clone, recorded, targets, children)
        if not reason:
            return git(clone, "rev-parse", "HEAD").strip()
    name = next(iter(recorded))
    raise UserError(
        f"{name}: {len(tried)} commits tried, none has the code that {LOCK} recorded ({reason}); name it with --from"
    )


def _candidates(project: Project, md5: str) -> Iterator[str]:
    """The last commit that changed dvc.lock, the one that put a hash into it, and those that changed code before it."""
    locks = git(project.root, "log", "--format=%H", "--", LOCK.as_posix()).split()[:1]
    found = git(project.root, "log", "--reverse", "--format=%H", f"-S{md5}", "--", LOCK.as_posix()).split()[:1]
    start = [*found, "HEAD"][0]
    before = git(project.root, "log", f"-{_TRIED}", "--format=%H", start, "--", "src", "params").split()
    yield from dict.fromkeys([*locks, *found, *before])


def _objection(clone: Path, recorded: dict[Path, str], targets: Sequence[Path], children: Children) -> str:
    """Why a commit is not the recorded one; empty when it is."""
    options = ("--dry-run", "--quiet", "all", "--profile", "none", "--workflow-profile", "none", "--cores", "1")
    ended = children.python(clone, "-m", "snakemake", *options, "--", *map(str, targets))
    if ended.status:
        return ended.last
    for path, md5 in recorded.items():
        if not (clone / path).is_file():
            return f"it writes no {path}"
        if md5_file(clone / path) != md5:
            return f"it has another {path}"
    return ""

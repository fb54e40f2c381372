"""`polygrain example`: a small repository with a real history, to try `audit` on.

It is a copy of this repository with one small table. Each commit is built by Snakemake and recorded, and has a tag that
says what it shows: a changed parameter, a comment, a merge, a bug and its fix, and last a result that was
edited by hand, with every record and hash adapted to it.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polygrain.config.project import Project
from polygrain.config.stages import stages_behind
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, read_json, sha256_file, write_text
from polygrain.provenance.git import git
from polygrain.provenance.scratch import run

TARGET = "reports/smoke/lessons.pdf"
RUN = Path("runs/smoke/fashion-mnist/simclr/base/seed0")
_TABLE = """\
# The table of this example: two rows at smoke scale. Its numbers mean nothing; only its history matters.
# Build: snakemake --cores all reports/smoke/lessons.pdf
# Cost: a minute.
name: Lessons
title: A table with a history
caption: Top-1 accuracy (%) on 512 test images. Every number here was made in seconds and means nothing.
dataset: fashion-mnist
seeds: [0]

groups:
  - label: Rows
    rows:
      - {label: Random initialisation, method: random}
      - {label: SimCLR, method: simclr}

columns:
  - {id: knn, group: Fashion-MNIST, label: k-NN, protocol: knn, value: fashion-mnist/top1}
  - {id: linear, group: Fashion-MNIST, label: linear, protocol: linear, value: fashion-mnist/top1}
"""
_LOSS = "src/polygrain/methods/simclr.py"
_RIGHT, _WRONG = ("nt_xent(z_1_BD, z_2_BD, self.temperature)", "nt_xent(z_1_BD, z_1_BD, self.temperature)")


@dataclass(frozen=True)
class Lesson:
    """One commit: its tag, its message, what is edited, whether it is built and recorded, and what it shows."""

    tag: str
    subject: str
    edit: Callable[[Path], None]
    built: bool
    shows: str


def _start(root: Path) -> None:
    write_text(root / "params/table/lessons.yaml", _TABLE)


def _replace(name: str, old: str, new: str, root: Path) -> None:
    text = (root / name).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise UserError(f"{root / name}: the example expects {old!r} there once; this tree has changed")
    (root / name).write_text(text.replace(old, new), encoding="utf-8")


def _tamper(root: Path) -> None:
    """Raise one accuracy and adapt the record of the job, so that `record` finds nothing to complain about."""
    path, sidecar = root / RUN / "results/linear.json", root / "records" / RUN / "linear.json"
    result, record = read_json(path), read_json(sidecar)
    result["values"]["fashion-mnist/top1"] += 0.0625
    write_text(path, canonical_json(result))
    said = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    record["outputs"][(RUN / "results/linear.json").as_posix()] = said
    write_text(sidecar, canonical_json(record))


_PROBE = partial(_replace, "params/evaluate/linear.yaml", "iterations: 300", "iterations: 3")
_NAMED = "# The name that params/method/simclr.yaml refers to.\nMETHOD = SimCLR"
_COMMENT = partial(_replace, _LOSS, "METHOD = SimCLR", _NAMED)
_BREAK, _FIX = partial(_replace, _LOSS, _RIGHT, _WRONG), partial(_replace, _LOSS, _WRONG, _RIGHT)
BRANCH = "shorter-probe"
LESSONS = (
    Lesson("1-start", "A table of two rows", _start, True, "everything is new"),
    Lesson("2-parameter", "A shorter linear probe", _PROBE, True, "explained by the parameter (a branch)"),
    Lesson("3-comment", "Say what METHOD is for", _COMMENT, False, "nothing: comments decide no bytes"),
    Lesson("4-merge", "Merge the shorter probe", lambda root: None, False, "the numbers of the branch"),
    Lesson("5-bug", "Tidy up the loss of SimCLR", _BREAK, True, "explained by the code: a bug, as it turns out"),
    Lesson("6-fix", "Compare the two views of an image again", _FIX, True, "the earlier bytes came back"),
    Lesson("7-tampered", "Polish the table", _tamper, True, "UNEXPLAINED: a result was edited, no input was"),
)


def make_example(project: Project, folder: Path) -> None:
    """Write the example repository into `folder`.

    What this tree has already built of it, such as packed data, is copied and not built again. Raises UserError when
    the folder holds something, and with the last words of a build that fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: there is something already; name a folder that does not exist")
    _copy_tracked(project.root, folder)
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        *(("config", *setting) for setting in (("user.name", "example"), ("user.email", "example@localhost"))),
        *(("config", setting, "false") for setting in ("commit.gpgsign", "tag.gpgsign")),
    ):
        run(folder, "git", *command)
    for lesson in LESSONS:
        print(f"{lesson.tag:<12} {lesson.subject} ...", flush=True)
        _commit(project, folder, lesson)
    print(f"\n{folder}: {len(LESSONS)} commits, each with a tag\n")
    for lesson in LESSONS:
        print(f"  {lesson.tag:<12} {lesson.shows}")
    print(f"\nnow type:\n  cd {folder}\n  export PYTHONPATH=$PWD/src\n  polygrain check-lock")
    print("  polygrain audit\n  polygrain audit --cache")
    print(f"  polygrain audit --rebuild {RUN / 'results/linear.json'}")
    print(f"  polygrain history {TARGET} --row simclr --column linear --plot linear.png")


def _commit(project: Project, folder: Path, lesson: Lesson) -> None:
    if lesson.tag == "2-parameter":
        run(folder, "git", "checkout", "--quiet", "-b", BRANCH)
    elif lesson.tag == "3-comment":
        run(folder, "git", "checkout", "--quiet", "main")
    if lesson.tag == "4-merge":
        run(folder, "git", "merge", "--quiet", "--no-ff", "--message", lesson.subject, BRANCH)
    else:
        lesson.edit(folder)
        if lesson.tag == "1-start":
            _copy_built(project.root, folder)
        if lesson.built:
            run(folder, "snakemake", "--cores", "all", TARGET)
            run(folder, "polygrain", "record", TARGET)
        run(folder, "git", "add", "--all")
        run(folder, "git", "commit", "--quiet", "--message", lesson.subject)
    run(folder, "git", "tag", lesson.tag)


def _copy_tracked(root: Path, folder: Path) -> None:
    """Copy what git tracks, without this repository's own claims."""
    for name in git(root, "ls-files", "-z").split("\0"):
        claim = name in ("dvc.lock", "dvc.yaml") or name.startswith("reports/")
        if name and not claim and (root / name).is_file():
            _copy(root / name, folder / name)


def _copy_built(root: Path, folder: Path) -> None:
    """Copy each job's files with their times, so that Snakemake finds them as they were; it decides what is stale."""
    for stage in stages_behind(Project(folder), [TARGET]):
        files = [*stage.outputs, stage.config_path, stage.code_path, stage.environment_path, stage.sidecar]
        if all((root / path).is_file() for path in files):
            for path in files:
                _copy(root / path, folder / path)


def _copy(source: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, copy)

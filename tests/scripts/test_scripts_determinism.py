"""Rebuilding under kills: the plan, the drive of real processes that are killed, and that a difference is found."""

from argparse import Namespace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from determinism import FOLDER, Rebuild, draw, main, md5_file, table

from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.train.guard import locked

RUN = "runs/cpu/fashion-mnist/simclr/base/seed0"
STEPS, BATCH = 40, 8
# Verbs in miniature: 40 steps of 30 ms with a state every 10, then quick stages. `broken` in the root: a training that
# was killed ends in other bytes; `forgetful`: it cannot go on from its state.
VERBS = """
import os, pathlib, sys, time
verb, folder = sys.argv[1], pathlib.Path(sys.argv[3])
def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    time.sleep(0.02)
    os.replace(temporary, path)
if verb == "pretrain":
    state = folder / "scratch/state.pt"
    step = int(state.read_text()) if state.exists() else 0
    if step and pathlib.Path("forgetful").exists():
        print("starting over: the half-done run differs", flush=True)
        step = 0
    elif step:
        print(f"continuing the half-done run at step {step} of 40", flush=True)
    resumed = bool(step)
    while step < 40:
        print(f"\\rx: 10%|#| {step * 8}/320 [00:00<00:00]", end="", file=sys.stderr, flush=True)
        time.sleep(0.03)
        step += 1
        if step % 10 == 0:
            write(state, str(step))
    write(folder / "checkpoint.safetensors", "other" if resumed and pathlib.Path("broken").exists() else "weights")
    write(folder / "metrics.jsonl", "metrics")
    state.unlink()
else:
    time.sleep(0.1)
    for path in {"features": ["features.safetensors"], "evaluate": ["results/knn.json", "results/knn.npz"]}[verb]:
        write(folder / path, path)
"""
OUTPUTS = {
    "pretrain": ("checkpoint.safetensors", "metrics.jsonl"),
    "features": ("features.safetensors",),
    "evaluate": ("results/knn.json", "results/knn.npz"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "src/polygrain/cli"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(VERBS)
    return tmp_path


def stages() -> list[Any]:
    config = {"steps": STEPS, "pretrain": {"batch": BATCH, "images": 30 * BATCH}}
    return [
        SimpleNamespace(
            verb=verb,
            task=verb,
            name=verb,
            directory=Path(RUN),
            target=Path(RUN),
            config=config if verb == "pretrain" else {},
            outputs=tuple(Path(RUN, name) for name in names),
        )
        for verb, names in OUTPUTS.items()
    ]


def rebuilt(root: Path, kills: int) -> tuple[Rebuild, int]:
    """Build under kills what must come out as the miniature verbs make it without."""
    contents = {"checkpoint.safetensors": "weights", "metrics.jsonl": "metrics"}
    claims, called = {}, list[int]()
    for name in (name for names in OUTPUTS.values() for name in names):
        path = root / "reference" / RUN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents.get(name, name))
        claims[Path(RUN, name)] = md5_file(path)
    rebuild = Rebuild(root, RUN, stages(), claims=claims, usual=dict.fromkeys(OUTPUTS, 0.15))
    rebuild.go(rebuild, kills, 0, SimpleNamespace(update=lambda: called.append(1)), Event())
    return rebuild, len(called)


def test_the_plan_holds_the_kills_asked_for_in_an_order_that_can_happen() -> None:
    names = list(OUTPUTS)
    for kills in (1, 4, 5, 10, 23, 57):
        for steps in (0, 24, 1562):
            points = draw(kills, steps, names, "0 run")
            assert sum(map(len, points.values())) == kills
            aims = [point.value for point in points["pretrain"] if point.place in ("step", "save")]
            assert aims == sorted(aims)
            assert all(0 <= aim <= steps for aim in aims)
    assert draw(23, 1562, names, "0 a") == draw(23, 1562, names, "0 a") != draw(23, 1562, names, "1 a")


def test_a_run_is_killed_as_often_as_asked_and_ends_in_the_same_bytes(root: Path) -> None:
    rebuild, called = rebuilt(root, 20)
    assert rebuild.kills.total() == called == 20
    assert rebuild.faults == []
    assert rebuild.resumes > 0
    assert rebuild.compared >= 5
    assert {"features", "evaluate"} < set(rebuild.kills)
    text = table([rebuild], seed=0)
    assert f"| {RUN} | 40 | 20 |" in text
    assert "| 0 | dvc.lock |" in text
    assert "20 kill points from seed 0: " in text


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ("broken", "checkpoint.safetensors: differs from the reference"),
        ("forgetful", "a state left by a kill could not be continued"),
    ],
)
def test_a_resume_that_changes_a_byte_or_starts_over_is_found(root: Path, flaw: str, words: str) -> None:
    (root / flaw).touch()
    rebuild, _ = rebuilt(root, 15)
    assert any(words in fault for fault in rebuild.faults)


def test_a_verb_that_fails_by_itself_is_told_with_its_last_line(root: Path) -> None:
    (root / "src/polygrain/cli/main.py").write_text("import sys\nsys.exit('polygrain pretrain: no data')")
    with pytest.raises(UserError, match="seed0: pretrain ended with status 1: polygrain pretrain: no data"):
        rebuilt(root, 5)


def test_bad_numbers_and_a_second_one_at_work_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "params/method").mkdir(parents=True)
    with pytest.raises(UserError, match="1 kills for 2 runs; give each one"):
        main(Project(tmp_path), Namespace(runs=[RUN, RUN], kills=1, jobs=1))
    with locked(tmp_path / FOLDER), pytest.raises(UserError, match="already working"):
        main(Project(tmp_path), Namespace(runs=[RUN], kills=1, jobs=1))

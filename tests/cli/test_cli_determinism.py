"""Rebuilding under kills: the plan, the drive of real processes that are killed, and that a difference is found."""

from pathlib import Path

import pytest

from polygrain.cli.determinism.plan import draw, shares
from polygrain.cli.determinism.rebuild import Rebuild, Tally
from polygrain.cli.determinism.run import table
from polygrain.cli.determinism.scratch import folder_of, hashes
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import Stage
from polygrain.provenance.errors import UserError

RUN = Run("cpu", "fashion-mnist", "simclr", "base", 0)
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


def stages() -> list[Stage]:
    config = {"steps": STEPS, "pretrain": {"batch": BATCH, "images": 30 * BATCH}}
    return [
        Stage(verb, RUN.path, config, (), (), tuple(RUN.path / name for name in names))
        for verb, names in OUTPUTS.items()
    ]


def rebuilt(root: Path, kills: int) -> tuple[Tally, int]:
    """Build under kills what must come out as the miniature verbs make it without."""
    tally, called = Tally(RUN, STEPS, ""), []
    contents = {"checkpoint.safetensors": "weights", "metrics.jsonl": "metrics"}
    for name in (name for names in OUTPUTS.values() for name in names):
        path = root / "reference" / RUN.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents.get(name, name))
    reference = hashes(root / "reference", stages())
    assert len(reference) == 5
    rebuild = Rebuild(root, stages(), reference, tally, lambda: False, lambda: called.append(1))
    rebuild.usual = dict.fromkeys(OUTPUTS, 0.15)
    rebuild.go(kills, seed=0)
    return tally, len(called)


def test_the_plan_holds_the_kills_asked_for_in_an_order_that_can_happen():
    assert shares(207, 9) == [23] * 9
    assert shares(10, 4) == [3, 3, 2, 2]
    for kills in (1, 4, 5, 10, 23, 57):
        for steps in (0, 24, 1562):
            points = draw(kills, steps, 0, "run")
            assert sum(map(len, points.values())) == kills
            aims = [point.value for point in points["pretrain"] if point.place in ("step", "save")]
            assert aims == sorted(aims)
            assert all(0 <= aim <= steps for aim in aims)
    assert draw(23, 1562, 0, "a") == draw(23, 1562, 0, "a")
    assert draw(23, 1562, 0, "a") != draw(23, 1562, 1, "a") != draw(23, 1562, 1, "b")


def test_a_run_is_killed_as_often_as_asked_and_ends_in_the_same_bytes(root):
    tally, called = rebuilt(root, 20)
    assert tally.kills.total() == called == 20
    assert tally.faults == []
    assert tally.resumes > 0
    assert tally.compared >= 5
    assert {"features", "evaluate"} < set(tally.kills)
    text = table([tally], seed=0)
    assert f"| {RUN.path} | 40 | 20 |" in text
    assert "| 0 | dvc.lock |" in text
    assert "20 kill points from seed 0: " in text


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ("broken", "checkpoint.safetensors: differs from the reference"),
        ("forgetful", "a state left by a kill could not be continued"),
    ],
)
def test_a_resume_that_changes_a_byte_or_starts_over_is_found(root, flaw, words):
    (root / flaw).touch()
    tally, _ = rebuilt(root, 15)
    assert any(words in fault for fault in tally.faults)


def test_a_verb_that_fails_by_itself_is_told_with_its_last_line(root):
    (root / "src/polygrain/cli/main.py").write_text("import sys\nsys.exit('polygrain pretrain: no data')")
    with pytest.raises(UserError, match="pretrain ended with status 1: polygrain pretrain: no data"):
        rebuilt(root, 5)


def test_one_at_a_time_and_what_an_interrupted_one_left_is_removed(tmp_path):
    left = tmp_path / "build/determinism/killed"
    left.mkdir(parents=True)
    with folder_of(Project(tmp_path)) as folder:
        assert list(folder.iterdir()) == []
        with (
            pytest.raises(UserError, match="another `polygrain determinism` is at work here"),
            folder_of(Project(tmp_path)),
        ):
            pass

"""Same bits: again, with any number of loader workers, and after SIGKILL at any point, for every method of table 1.

The reference is what Snakemake built. `--cores 1` against 2 is in test_workflow_smoke.py.
"""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from workflow_forks import Kill
from workflow_photos import make_photos
from workflow_world import WORKERS, World, outputs

from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.provenance.stage import Stage

REPOSITORY = Project(Path(__file__).resolve().parents[2])
TABLE = yaml.safe_load((REPOSITORY.params / "table/table1.yaml").read_text())
METHODS = sorted({row["method"] for group in TABLE["groups"] for row in group["rows"]})
SHORT = "mncl"  # the one that `make test` takes along: a queue and a moving average come back with its state
PARTS = 6  # of a step that the loop tells apart: rest, views, forward, backward, optimiser, rest

pytestmark = pytest.mark.workflow


def killed(world: World, stages: Sequence[Stage], expected: dict[str, str]) -> dict[str, str]:
    """Run all stages, each killed several times; what stands under a final name then is right, or is not there."""
    generator = random.Random(str(stages[0].directory))
    for stage in stages:
        for kill in kills(stage, generator):
            if kill.event == "phase":
                kill = Kill("phase", max(1, kill.number - PARTS * world.resumed_from(stage)))
            status = world.run(stage, kill)
            assert status == -9 or (kill.event == "seconds" and status == 0), f"{kill}\n{world.forks.said}"
            assert outputs(world.project.root, stages).items() <= expected.items(), kill
        assert world.run(stage) == 0, world.forks.said
    return outputs(world.project.root, stages)


def kills(stage: Stage, generator: random.Random) -> list[Kill]:
    """While a state is saved, at drawn parts of drawn steps, at any moment, and between the final names."""
    moment = Kill("seconds", generator.uniform(0, 1))
    if stage.verb != "pretrain":
        return [moment, *(Kill("rename", name=path.name) for path in (stage.outputs[1::2] or [stage.sidecar]))]
    count = min(3, stage.config["steps"])
    steps = sorted(generator.sample(range(1, stage.config["steps"]), count)) if count else []
    publishing = [Kill("rename", name=path.name) for path in (*stage.outputs, stage.sidecar)]
    publishing.append(Kill("remove", name="state.pt"))
    generator.shuffle(publishing)
    return [
        *([Kill("rename", name="state.pt")] if steps else []),
        *(Kill("phase", PARTS * step + generator.randint(1, PARTS)) for step in steps),
        moment,
        *publishing,
    ]


@pytest.fixture(scope="module")
def worlds(built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    """Two, to work in side by side; the photographs are packed once."""
    photos = make_photos(tmp_path_factory.mktemp("sets"))
    one, other = (World(tmp_path_factory.mktemp("world"), built.root) for _ in range(2))
    assert one.forks.run("prepare", "data/photos", POLYGRAIN_DATA=str(photos)) == 0, one.forks.said
    (other.project.root / "data/photos").symlink_to(one.project.root / "data/photos")
    yield one, other
    for world in (one, other):
        world.forks.close()


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.long] * (m != SHORT)) for m in METHODS])
def test_a_run_is_the_same_bits_again_with_any_workers_and_after_any_kill(method, built, worlds):
    run = Run("smoke", "fashion-mnist", method, "base", 0)
    photos = [Run(f"smoke-workers{workers}", "photos", method, "base", 0) for workers in WORKERS]
    one, other = worlds
    # composed before threads start: Hydra's state is global
    run_again, killed_run, *encoded = one.stages(run), other.stages(run), *map(one.stages, photos)
    encoded[2] = other.stages(photos[2])
    expected = outputs(built.root, run_again)
    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(lambda: [one.straight(stages) for stages in (run_again, *encoded[:2])])
        right = pool.submit(lambda: (killed(other, killed_run, expected), other.straight(encoded[2])))
        again, in_process, one_worker = left.result()
        after_kills, two_workers = right.result()
    names = {"checkpoint.safetensors", "metrics.jsonl", "features.safetensors"}
    assert names < set(expected)
    assert again == expected
    assert after_kills == expected
    assert set(in_process) == set(expected)
    assert one_worker == in_process
    assert two_workers == in_process

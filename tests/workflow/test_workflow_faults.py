"""Faults: no artifact under a final name is ever wrong, and one line says what happened.

Kills between any two final names of a stage are in test_workflow_same_bits.py.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import workflow_machine as machine
from workflow_forks import Forks
from workflow_photos import make_photos
from workflow_world import World, outputs

from polygrain.config.inputs import write_inputs
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of

SMOKE = "reports/smoke-seeds1/table1.pdf"
SIMCLR = Run("smoke", "fashion-mnist", "simclr", "base", 0)
OTHER = "runs/smoke/mnist-5k/simclr/base/seed0"
RANDOM = Run("smoke", "fashion-mnist", "random", "base", 0)
MONTH = 30 * 86400 * 10**9

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def world(built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"), built.root)
    yield world
    world.forks.close()


@pytest.fixture(scope="module")
def tables(built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with the built runs, linked one by one."""
    world = World(tmp_path_factory.mktemp("tables"), built.root)
    scale = Path("runs/smoke")
    (world.project.root / scale).mkdir(parents=True)
    (world.project.root / scale / "fashion-mnist").symlink_to(built.root / scale / "fashion-mnist")
    yield world
    world.forks.close()


def one_line(forks: Forks, *words: str) -> None:
    """The last verb ended with one line, behind whatever progress it showed."""
    lines = [line for line in forks.said.replace("\r", "\n").splitlines() if line.strip()]
    assert sum(line.startswith("polygrain ") for line in lines) == 1, forks.said
    assert lines[-1].startswith("polygrain "), forks.said
    assert "Traceback" not in forks.said
    for word in words:
        assert word in lines[-1], lines[-1]


def leftovers(root: Path) -> list[Path]:
    return [path for folder in ("runs", "records", "reports") for path in (root / folder).rglob("*.tmp")]


def tables_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "reports/smoke-seeds1").glob("table1.*")}


# --- a disk that is full


def test_a_write_cut_off_anywhere_leaves_nothing_wrong_and_the_next_build_is_right(built, world):
    """Each stage meets a limit on the size of files, at the first page and at the last byte."""
    stages = world.stages(SIMCLR)
    root, right = world.project.root, outputs(built.root, stages)
    for stage in stages:
        largest = max((built.root / path).stat().st_size for path in stage.outputs)
        for limit in (machine.PAGE, largest - 1):
            before = machine.files_up_to(limit)
            assert world.forks.run(stage.verb, "--workflow", str(stage.target), before=before) == 2, world.forks.said
            one_line(world.forks, "file too large; raise the limit of a file's size")
            assert outputs(root, stages).items() <= right.items()
            assert not leftovers(root)
        assert world.run(stage) == 0, world.forks.said
    assert outputs(root, stages) == right


def test_a_full_disk_is_told_in_one_line_and_space_is_all_that_it_takes(built, world, tables, tmp_path):
    """A small file system in place of the folder; without the right to mount one, the limit on files again."""
    real = machine.mounting()
    words = "ree some space" if real else "file too large"

    def fails(where: World, folder: Path, left: int, *arguments: str, **variables: str) -> None:
        full = machine.disk_with(where.project.root, folder, left) if real else machine.files_up_to(left)
        assert where.forks.run(*arguments, before=full, **variables) == 2, where.forks.said
        one_line(where.forks, words)

    stages = world.stages(SIMCLR)
    right = outputs(built.root, stages)
    for stage in stages:
        folder = {"pretrain": stage.directory / "scratch", "evaluate": stage.directory / "results"}
        (world.project.root / stage.directory / "scratch").mkdir(exist_ok=True)
        (world.project.root / stage.directory / "results").mkdir(exist_ok=True)
        fails(world, folder.get(stage.verb, stage.directory), 8192, stage.verb, "--workflow", str(stage.target))
        assert outputs(world.project.root, [stage]) == {}
        assert world.run(stage) == 0, world.forks.said
    assert outputs(world.project.root, stages) == right
    (tables.project.root / "reports/smoke-seeds1").mkdir(parents=True)
    fails(tables, Path("reports/smoke-seeds1"), 16384, "table", SMOKE)
    assert tables_of(tables.project.root) == {}
    assert tables.forks.run("table", SMOKE) == 0, tables.forks.said
    assert tables_of(tables.project.root) == tables_of(built.root)
    photos = {"POLYGRAIN_DATA": str(make_photos(tmp_path))}
    (world.project.root / "data/photos").mkdir()
    fails(world, Path("data/photos"), 65536, "prepare", "data/photos", **photos)
    assert not list((world.project.root / "data/photos").glob("*.*"))


# --- a tree that may not be written


@pytest.mark.parametrize("way", ["mounted read-only", "not permitted"])
def test_a_read_only_tree_is_one_line_for_every_verb(way, built, tables):
    root = tables.project.root
    mounted = way == "mounted read-only" and machine.mounting()
    words, before = (
        ("read-only file system; mount it writable", machine.read_only())
        if mounted
        else ("permission denied; work as a user who may", machine.unprivileged())
    )
    write_inputs(tables.project, stage_of(tables.project, "table", SMOKE))
    with ExitStack() as undo:
        if not mounted:
            undo.enter_context(unwritable(root))
        for verb, *arguments in (("plan", SMOKE), ("show", str(SIMCLR.path)), ("ledger", "wcl")):
            assert tables.forks.run(verb, *arguments, before=before) == 0, tables.forks.said
        assert tables.forks.run("doctor", before=before) == 1
        assert f"{root}: you may not write here; work in a clone of your own" in tables.forks.said
        for verb, argument in (
            ("prepare", "data/photos"),
            ("pretrain", OTHER),
            ("evaluate", f"{OTHER}/results/knn"),
            ("table", SMOKE),
        ):
            assert tables.forks.run(verb, argument, before=before) == 2, verb
            one_line(tables.forks, f"polygrain {verb}: ", words)


@contextmanager
def unwritable(root: Path) -> Iterator[None]:
    """No permission to write into any folder."""
    folders = [root, *(folder for folder in root.rglob("*") if folder.is_dir() and not folder.is_symlink())]
    modes = {folder: folder.stat().st_mode for folder in folders}
    for folder, mode in modes.items():
        folder.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


# --- two processes at once


def test_two_processes_on_one_thing_make_it_once_or_make_the_same(built, world, tables, tmp_path):
    """Training is refused to the second; what both may do ends in the same bytes, whoever is last."""
    stages = world.stages(SIMCLR)
    right = outputs(built.root, stages)
    other = Forks(world.project.root)
    writer = Forks(tables.project.root)
    with ThreadPoolExecutor(2) as pool:

        def both(one: Forks, two: Forks, *arguments: str) -> list[int]:
            return sorted(pool.map(lambda forks: forks.run(*arguments), (one, two)))

        assert both(other, writer, "ledger", "wcl") == [0, 0]  # they are there, and start as fast as the first
        for stage in stages:
            ends = both(world.forks, other, stage.verb, "--workflow", str(stage.target))
            assert ends in ([0, 0], [0, 2]), world.forks.said + other.said
            if ends == [0, 2]:
                assert stage.verb == "pretrain"
                refused = world.forks if "is already working on this run" in world.forks.said else other
                one_line(refused, "is already working on this run; wait for it or stop it")
        assert outputs(world.project.root, stages) == right
        assert both(tables.forks, writer, "table", SMOKE) == [0, 0]
        assert tables_of(tables.project.root) == tables_of(built.root)
    for root in (world.project.root, tables.project.root):
        assert not leftovers(root)
    other.close()
    writer.close()


# --- a clock that goes back


def test_a_clock_that_goes_back_while_a_job_runs_changes_no_bit(built, world):
    stages = world.stages(SIMCLR)
    for stage in stages:
        before = machine.clock_going_back()
        assert world.forks.run(stage.verb, "--workflow", str(stage.target), before=before) == 0, world.forks.said
    assert outputs(world.project.root, stages) == outputs(built.root, stages)


def test_results_from_the_future_are_not_taken_for_newer_than_an_edit(built, copy_of_built):
    """After the clock was put back by a month, everything that was built is dated a month ahead."""
    checkout = copy_of_built()
    for top in ("data", "runs", "reports", "logs", "benchmarks"):
        for path in (checkout.root / top).rglob("*"):
            later = path.stat().st_mtime_ns + MONTH
            os.utime(path, ns=(later, later))
    assert checkout.planned() == {}
    params = checkout.root / "params/method/simclr.yaml"
    text = params.read_text()
    params.write_text(text.replace("temperature: 0.2", "temperature: 0.31"))
    assert checkout.planned() == {"pretrain": 1, "features": 1, "evaluate": 5, "table": 1}
    target = f"{SIMCLR.path}/checkpoint.safetensors"
    done = checkout.run("snakemake", "--cores", "1", target, check=False)
    assert done.returncode != 0
    assert "This could indicate a clock skew problem" in done.stdout + done.stderr
    assert not (checkout.root / target).exists()
    params.write_text(text)
    assert checkout.planned()["pretrain"] == 1


# --- inputs that change while a job works


def test_a_config_that_changes_under_a_job_leaves_no_output_and_says_so(built, world):
    stages = world.stages(RANDOM)
    before = (
        "import polygrain.provenance.sidecar as sidecar\nfrom pathlib import Path\n"
        f"original = sidecar.git_state\nconfig = Path({str(stages[0].config_path)!r})\n"
        "def edited(*arguments):\n    config.write_text(config.read_text().replace('seed: 0', 'seed: 5'))\n"
        "    return original(*arguments)\nsidecar.git_state = edited\n"
    )
    assert world.forks.run("pretrain", "--workflow", str(RANDOM.path), before=before) == 2
    one_line(world.forks, "config/pretrain.yaml: changed while a job used it; the outputs of the job were removed")
    assert outputs(world.project.root, stages) == {}
    write_inputs(world.project, stages[0])
    assert world.straight(stages) == outputs(built.root, stages)


def test_code_edited_after_the_job_graph_was_built_is_not_run(world):
    stages = world.stages(RANDOM)
    source = world.project.root / "src/polygrain/methods/random.py"
    text = source.read_text()
    try:
        source.write_text(text + "\n# a remark\n")
        assert world.run(stages[0]) == 0, world.forks.said
        source.write_text(text + "\nCHANGED = 1\n")
        assert world.run(stages[0]) == 2
        one_line(world.forks, "polygrain.methods.random: edited since", "run the same command again")
    finally:
        source.write_text(text)


def test_a_machine_without_memory_and_a_damaged_config_are_one_line(world):
    stages = world.stages(SIMCLR)
    before = "import resource\nused = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    before += "resource.setrlimit(resource.RLIMIT_AS, (used + 2**25,) * 2)"
    assert world.forks.run("pretrain", "--workflow", str(SIMCLR.path), before=before) == 2, world.forks.said
    one_line(world.forks, "cannot allocate memory; close other programs")
    for content in ("", "a: [", "- 1"):
        (world.project.root / stages[0].config_path).write_text(content)
        assert world.run(stages[0]) == 2
        one_line(world.forks, "config/pretrain.yaml: ", "delete it and build through snakemake, which writes it")
    assert outputs(world.project.root, stages) == {}

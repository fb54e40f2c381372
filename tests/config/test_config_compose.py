import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.cli.describe import plan_table, show_run
from polygrain.config.budget import facts, minutes, steps
from polygrain.config.compose import origins
from polygrain.config.inputs import input_texts, write_inputs
from polygrain.config.project import Project
from polygrain.config.resolved import configuration
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of, stages_behind
from polygrain.config.tables import Table, specification
from polygrain.provenance.errors import UserError

PROJECT = Project(Path(__file__).resolve().parents[2])
SIMCLR = Run("cpu", "fashion-mnist", "simclr", "base", 0)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A private copy of what a person writes."""
    for name in ("params", "workflow", "src"):
        shutil.copytree(PROJECT.root / name, tmp_path / name)
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(PROJECT.root / name, tmp_path / name)
    (tmp_path / "params/recipe/simclr/cpu.yaml").unlink()  # it would lie over what the tests edit
    return Project(tmp_path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_later_layers_win(project):
    base = configuration(project, SIMCLR)
    folder = project.params / "variant" / "simclr"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hot.yaml").write_text("# @package _global_\nmethod: {values: {temperature: 0.75}}\n")
    hot = Run("cpu", "fashion-mnist", "simclr", "hot", 0)
    changed = configuration(project, hot)
    assert changed["method"]["values"] == {**base["method"]["values"], "temperature": 0.75}
    assert {k: v for k, v in changed.items() if k != "method"} == {k: v for k, v in base.items() if k != "method"}
    assert origins(hot, project.params)["method.values.temperature"] == "params/variant/simclr/hot.yaml:2"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "method/simclr.yaml",
            "temperature:",
            "temprature:",
            "unknown key 'method.values.temprature'; did you mean 'temperature'?",
        ),
        ("method/simclr.yaml", "layers: 2", "layers: two", "key 'method.values.layers' must be int, not 'two'"),
        (
            "scale/cpu.yaml",
            "images: 12000",
            "imagse: 12000",
            "unknown key 'pretrain.imagse'; did you mean 'images'?",
        ),
        (
            "scale/cpu.yaml",
            "batch: 128",
            "batch: 12800",
            "pretrain.batch 12800 is larger than pretrain.images 12000",
        ),
        (
            "optimizer/adamw.yaml",
            "  weight_decay:",
            "  weight_decya:",
            "unknown key 'optimizer.values.weight_decya'",
        ),
        (
            "optimizer/adamw.yaml",
            "name: adamw",
            "name: adamm",
            "key 'optimizer.name' must be one of 'adamw', 'sgd', 'lars' or 'larc', not 'adamm'",
        ),
        (
            "backbone/resnet.yaml",
            "name: resnet",
            "name: resnett",
            "no module 'resnett' in polygrain.backbones; did you mean 'resnet'?",
        ),
        (
            "run.yaml",
            "  transfer:",
            "  transfre:",
            "unknown key 'evaluate.transfre'; did you mean 'transfer'?",
        ),
    ],
)
def test_a_mistake_in_params_is_one_line_that_helps(project, file, old, new, words):
    edit(project.params / file, old, new)
    with pytest.raises(UserError) as caught:
        configuration(project, SIMCLR)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_queue_of_more_rows_than_images_is_refused_before_a_job_starts(project):
    edit(project.params / "scale/cpu.yaml", "images: 12000", "images: 2000")
    with pytest.raises(
        UserError, match=r"method\.values\.queue\.instance 2048 is more than pretrain\.images 2000; lower it"
    ):
        configuration(project, replace(SIMCLR, method="mugs"))


def test_an_unknown_evaluation_value_is_refused(project):
    path = project.params / "evaluate" / "knn.yaml"
    path.write_text(path.read_text() + "neighbors: 3\n")
    with pytest.raises(UserError, match=r"unknown key 'evaluate\.protocols\.knn\.neighbors'"):
        configuration(project, SIMCLR)


def test_show_prints_every_value_with_the_line_that_set_it():
    text = show_run(PROJECT, str(SIMCLR.path))
    line = next(line for line in text.splitlines() if line.startswith("method.values.temperature = "))
    file, number = line.split()[-1].split(":")
    assert "temperature" in (PROJECT.root / file).read_text().splitlines()[int(number) - 1]
    places = [line.split()[-1] for line in text.splitlines()[:-1]]
    assert all(place.startswith("params/") for place in places)


def test_equal_compute_means_equal_encoder_passes():
    spent = {}
    for method in ("simclr", "supervised"):
        config = configuration(PROJECT, Run("cpu", "fashion-mnist", method, "base", 0))
        assert steps(config) == config["pretrain"]["encoder_passes"] // (config["method"]["encoder_passes"] * 128)
        spent[method] = facts(config)["encoder_passes"]
        step = config["method"]["encoder_passes"] * config["pretrain"]["batch"]
        assert 0 <= config["pretrain"]["encoder_passes"] - spent[method] < step
    assert steps(configuration(PROJECT, Run("cpu", "fashion-mnist", "random", "base", 0))) == 0


def test_the_default_table_is_declared_to_fit_its_budget():
    """Ten rows, three seeds: 38 minutes on 2 cores; one seed: 14.

    Its jobs: training, features and five protocols of each run, two data sets, scenes, the table.
    """
    stages = stages_behind(PROJECT, ["reports/table1.pdf"])
    seeds = len(specification(PROJECT, Table("table1"))["seeds"])
    total = sum(stage.minutes for stage in stages)
    assert total <= 2 * 38
    shared = sum(stage.minutes for stage in stages if stage.verb in ("prepare", "compose", "table"))
    assert (total - shared) / seeds + shared <= 2 * 14
    assert len(stages) == 10 * seeds * 7 + 2 + 1 + 1


def test_plan_adds_up():
    lines = plan_table(PROJECT, "reports/table1.pdf").splitlines()
    counts = {words[0]: (int(words[1]), float(words[2])) for words in map(str.split, lines[1:-1])}
    assert counts["all"][0] == sum(count for name, (count, _) in counts.items() if name != "all")
    assert counts["all"][1] == pytest.approx(sum(minutes for name, (_, minutes) in counts.items() if name != "all"))


def test_inputs_are_rewritten_only_when_their_bytes_change(project):
    stage = stage_of(project, "pretrain", SIMCLR.path)
    paths = [project.root / path for path in write_inputs(project, stage)]
    times = [path.stat().st_mtime_ns for path in paths]
    write_inputs(project, stage)
    assert [path.stat().st_mtime_ns for path in paths] == times
    edit(project.params / "method" / "simclr.yaml", "temperature: 0.2", "temperature: 0.3")
    changed = stage_of(project, "pretrain", SIMCLR.path)
    write_inputs(project, changed)
    moved = [path.name for path, time in zip(paths, times, strict=True) if path.stat().st_mtime_ns != time]
    assert moved == ["pretrain.yaml"]


def test_a_written_configuration_reads_back_as_it_is():
    for stage in stages_behind(PROJECT, ["reports/smoke-seeds1/table1.pdf"]):
        text = input_texts(PROJECT, stage)[stage.config_path]
        assert yaml.safe_load(text) == stage.config


def test_the_table_follows_from_the_inputs_of_every_run():
    config = stage_of(PROJECT, "table", "reports/smoke-seeds1/table1.pdf").config
    rows = [row for group in config["groups"] for row in group["rows"]]
    hashes = [tuple(sorted(inputs.items())) for row in rows for inputs in row["inputs"].values()]
    assert len(set(hashes)) == len(rows)


def test_the_graph_is_built_without_torch():
    code = (
        "import sys\nfrom pathlib import Path\nfrom polygrain.config.project import Project\n"
        "from polygrain.config.stages import stages_behind\n"
        "stages_behind(Project(Path(sys.argv[1])), ['reports/table1.pdf'])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'too much imported'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(PROJECT.root)], check=True)


def test_every_file_opens_with_what_it_is_and_what_it_costs():
    for path in sorted(PROJECT.params.rglob("*.yaml")):
        header = path.read_text().partition("\n\n")[0].splitlines()
        comments = [line for line in header if line.startswith("#") and not line.startswith("# @package")]
        assert comments, path
        assert any(line.startswith("# Cost") or "Costs nothing" in line for line in comments), path


def presets(project: Project) -> None:
    """Two presets of a switch of SimCLR's, as a method with a released code has them."""
    (project.params / "mode" / "simclr").mkdir(parents=True)
    for mode, layers in (("described", 3), ("released", 1)):
        text = f"# @package _global_\nmethod: {{mode: {mode}, values: {{layers: {layers}}}}}\n"
        (project.params / "mode" / "simclr" / f"{mode}.yaml").write_text(text)
    (project.params / "variant" / "simclr").mkdir(parents=True, exist_ok=True)
    file = project.params / "method" / "simclr.yaml"
    edit(file, "mode: null\n", "")
    edit(file, "  layers: 2\n", "")
    file.write_text("defaults:\n  - override /mode@_global_.mode: simclr/described\n" + file.read_text())


def variant(project: Project, name: str, text: str) -> Run:
    (project.params / "variant" / "simclr" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return Run("cpu", "fashion-mnist", "simclr", name, 0)


RELEASED = "defaults:\n  - override /mode: simclr/released\n"


def test_a_run_is_described_unless_its_variant_takes_the_release(project):
    presets(project)
    method = configuration(project, SIMCLR)["method"]
    assert (method["mode"], method["values"]["layers"]) == ("described", 3)
    assert origins(SIMCLR, project.params)["method.values.layers"].startswith("params/mode/simclr/described.yaml")
    method = configuration(project, variant(project, "released", RELEASED))["method"]
    assert (method["mode"], method["values"]["layers"]) == ("released", 1)


def test_what_was_not_released_is_not_called_released(project):
    presets(project)
    configuration(project, variant(project, "deep", "method: {values: {layers: 4}}\n"))
    with pytest.raises(UserError, match=r"mode is released, but the release has layers: 1, not 4; take that value"):
        configuration(project, variant(project, "wrong", f"{RELEASED}method: {{values: {{layers: 4}}}}\n"))


def test_a_run_is_as_long_as_its_epochs_or_its_budget_say(project):
    edit(project.params / "method" / "simclr.yaml", "start_passes: 0", "start_passes: 2")
    config = configuration(project, SIMCLR)
    assert steps(config) == (640_000 - 2 * 12_000) // (6 * 128)
    taken = steps(config)
    assert facts(config) == {"images_seen": taken * 128, "steps": taken, "encoder_passes": 24_000 + taken * 6 * 128}
    edit(project.params / "scale" / "cpu.yaml", "epochs: null", "epochs: 2.5")
    with pytest.raises(UserError, match=r"give one of pretrain\.encoder_passes and pretrain\.epochs"):
        configuration(project, SIMCLR)
    edit(project.params / "scale" / "cpu.yaml", "encoder_passes: 640000", "encoder_passes: null")
    assert steps(configuration(project, SIMCLR)) == int(2.5 * 93)


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (PROJECT.params / "dataset").glob("*.yaml")))
def test_every_data_set_composes_and_names_itself(dataset):
    config = configuration(PROJECT, Run("cpu", dataset, "simclr", "base", 0))
    assert config["dataset"]["name"] == dataset
    stage = stage_of(PROJECT, "prepare", Path("data", dataset))
    assert {"side", "local_side"}.isdisjoint(stage.config)
    assert stage_of(PROJECT, "features", Run("cpu", dataset, "simclr", "base", 0).path).config["formats"][dataset]


def paper(method: str, variant: str) -> dict[str, Any]:
    return configuration(PROJECT, Run("paper", "imagenet-1k", method, variant, 0))


def test_the_papers_recipes_are_those_of_their_specifications():
    wcl, smog = paper("wcl", "base"), paper("smog", "base")
    assert steps(wcl) == 100 * (1_268_167 // 4096)
    assert steps(smog) == 400 * (1_268_167 // 4096)
    schedule = wcl["optimizer"]["schedule"]
    assert (wcl["optimizer"]["name"], schedule["base"], schedule["start"]) == ("lars", 0.075 * 4096**0.5, 0.0)
    assert schedule["warmup"] * 100 == wcl["method"]["values"]["weak_phase"] * 100 == 10
    assert (wcl["method"]["values"]["hidden"], wcl["method"]["values"]["embedding"]) == (2048, 128)
    heads = paper("wcl", "released-heads")["method"]
    assert (heads["mode"], heads["values"]["hidden"], heads["values"]["embedding"]) == ("released", 4096, 256)
    schedule = smog["optimizer"]["schedule"]
    assert (smog["optimizer"]["name"], schedule["base"], schedule["final"]) == ("larc", 4.8, 0.0048)
    assert schedule["warmup"] * 400 == pytest.approx(10)
    assert smog["statistics"]["std"][0] == 0.228
    swin = paper("smog", "swin")
    assert (swin["backbone"]["name"], swin["optimizer"]["name"], swin["method"]["mode"]) == (
        "swin",
        "adamw",
        "released",
    )


def test_a_number_of_epochs_is_a_share_of_the_run(project):
    """WCL warms up over 10 epochs, with weak views, however long the run (section 7)."""
    for variant, epochs in (("epochs-200", 200), ("epochs-800", 800)):
        config = paper("wcl", variant)
        shares = config["optimizer"]["schedule"]["warmup"], config["method"]["values"]["weak_phase"]
        assert config["pretrain"]["epochs"] == epochs
        assert [share * epochs for share in shares] == [10, 10]
    edit(project.params / "optimizer/adamw.yaml", "warmup: 0.1", 'warmup: "${epochs:2}"')
    with pytest.raises(UserError, match=r"pretrain.epochs is null, so \$\{epochs:N\} is no share of the run"):
        configuration(project, SIMCLR)
    edit(project.params / "scale/cpu.yaml", "epochs: null", "epochs: 1.5")
    edit(project.params / "scale/cpu.yaml", "encoder_passes: 640000", "encoder_passes: null")
    with pytest.raises(UserError, match=r"key 'optimizer.schedule.warmup' must be at most 1, not 1\.33"):
        configuration(project, SIMCLR)


def test_mugs_clips_its_largest_network_more_after_100_epochs():
    """Section 6.1, column L."""
    config = paper("mugs", "vit-l")
    assert config["optimizer"]["clip"] == {"rule": "each", "maximum": 3.0, "later": {"epoch": 101, "maximum": 0.3}}
    assert config["backbone"]["width"] % config["method"]["values"]["relation_heads"] == 0
    assert config["optimizer"]["schedule"]["base"] == pytest.approx(1.5e-3 * config["pretrain"]["batch"] / 256)
    assert config["optimizer"]["schedule"]["warmup"] * 250 == pytest.approx(10)


@pytest.mark.parametrize("variant", ["base", "released", "swin"])
def test_smog_at_224_px_declares_what_its_crops_cost(variant):
    config = paper("smog", variant)
    values = config["method"]["values"]
    small = values["small"] * (config["augmentation"]["local_a"]["size"] / config["input_size"]) ** 2
    online = 3 * (values["large"] + small)
    momentum = values["targets"] + (small if values["joint_norm"] or values["statistics_passes"] else 0)
    clean = values["large"] if values["clean"] else 0
    assert config["method"]["encoder_passes"] == pytest.approx(online + momentum + clean, abs=0.01)


def test_resets_that_no_step_reaches_are_refused(project):
    """Else base, `reset-none` and `reset-groups` would be one run, printed as an ablation."""
    place = Run("short", "fashion-mnist", "smog", "reset-every-5", 0)
    with pytest.raises(UserError, match=r"reset_epochs 5\.0 is every 465 steps, and the run has 171: nothing is reset"):
        configuration(PROJECT, place)
    assert configuration(PROJECT, replace(place, variant="reset-none"))["method"]["values"]["reset"] == "none"
    assert configuration(PROJECT, replace(place, scale="cpu"))["method"]["values"]["reset_epochs"] == 5.0
    edit(project.params / "variant/smog/reset-every-5.yaml", "5.0", "1.85")  # step 172, of 0 to 170
    with pytest.raises(UserError, match="is every 172 steps"):
        configuration(project, place)
    edit(project.params / "variant/smog/reset-every-5.yaml", "1.85", "1.83")  # step 170, the last
    assert steps(configuration(project, place)) == 171


def test_a_scale_takes_the_recipes_of_the_one_that_it_extends(project):
    folder = project.params / "recipe/simclr"
    folder.mkdir(exist_ok=True)
    recipe = "# @package _global_\noptimizer: {values: {weight_decay: %s}}\n"
    (folder / "cpu.yaml").write_text(recipe % 0.123)
    for scale, decay in (("cpu", 0.123), ("short", 0.123), ("equal-images", 0.123), ("smoke", 0.05)):
        config = configuration(project, Run(scale, "fashion-mnist", "simclr", "base", 0))
        assert config["optimizer"]["values"]["weight_decay"] == decay
    (folder / "short.yaml").write_text(recipe % 0.3)
    config = configuration(project, Run("short", "fashion-mnist", "simclr", "base", 0))
    assert config["optimizer"]["values"]["weight_decay"] == 0.3


def test_at_scale_equal_images_every_method_sees_as_many_images_as_mncl_at_cpu():
    seen = facts(configuration(PROJECT, Run("cpu", "fashion-mnist", "mncl", "base", 0)))["images_seen"]
    for method in ("supervised", "simclr", "mgc", "mncl", "mugs", "wcl", "smog"):
        config = configuration(PROJECT, Run("equal-images", "fashion-mnist", method, "base", 0))
        assert facts(config)["images_seen"] == seen


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({"minutes": 1.5, "encoder_passes": 640_000}, 0.7),  # 384 steps of 128 images, 6 passes each: 46 % of it
        ({"minutes": 1.5, "encoder_passes": None}, 1.5),
        ({"minutes": 1.5}, 1.5),
    ],
)
def test_another_budget_costs_its_share_of_the_declared_minutes(cost: dict[str, Any], expected: float) -> None:
    pretrain = {"encoder_passes": None, "epochs": 4.13, "images": 12_000, "batch": 128}
    method = {"encoder_passes": 6, "start_passes": 0}
    assert minutes({"pretrain": pretrain, "method": method, "cost": {"pretrain": cost}}) == expected

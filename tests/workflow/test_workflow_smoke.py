"""The workflow end to end at smoke scale, as its users run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from workflow_checkout import SMOKE, make_checkout

RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"

pytestmark = pytest.mark.workflow


def test_a_fresh_clone_lists_every_training(fresh):
    planned = fresh.planned("reports/table1.pdf")
    rows = [row for group in table_rows(fresh) for row in group["rows"]]
    seeds = yaml.safe_load((fresh.root / "params/table/table1.yaml").read_text())["seeds"]
    assert planned["pretrain"] == planned["features"] == len(rows) * len(seeds)
    assert planned["evaluate"] == 5 * len(rows) * len(seeds)
    assert (planned["prepare"], planned["compose"], planned["table"]) == (2, 1, 1)
    # seven jobs for each of ten rows and three seeds, two data sets, scenes, the table
    assert sum(planned.values()) == 214


def table_rows(checkout):
    return yaml.safe_load((checkout.root / "params/table/table1.yaml").read_text())["groups"]


@pytest.mark.parametrize("last", ["checkpoint.safetensors", "features.safetensors", "results/linear.json"])
def test_any_file_can_be_the_target_in_a_fresh_clone(tmp_path, last):
    planned = make_checkout(tmp_path / "fresh").planned(f"{RUN}/{last}")
    assert planned["pretrain"] == 1


def test_the_smoke_table_is_built_and_then_nothing_is_left_to_do(built):
    assert (built.root / SMOKE).read_bytes().startswith(b"%PDF")
    assert built.planned() == {}
    text = subprocess.run(["pdftotext", built.root / SMOKE, "-"], capture_output=True, text=True, check=True).stdout
    assert "SimCLR" in text
    assert "smoke" in text


def test_every_job_leaves_a_record_and_no_half_written_file(built):
    sidecars = list(built.root.glob("records/**/*.json"))
    assert len(sidecars) == sum(1 for _ in built.root.glob("logs/**/*.log"))
    for sidecar in sidecars:
        record = json.loads(sidecar.read_text())
        assert record["outputs"]
        assert record["peak_memory_mib"] < 1536
    assert not list(built.root.rglob("*.tmp"))
    assert not list(built.root.rglob("state.pt"))


def test_the_hashed_code_covers_every_module_that_a_job_really_loaded(built):
    """What decides numbers lies in these rooms; `train.guard` ends a job with its parent, whatever the verb."""
    rooms = {"nn", "data", "views", "backbones", "methods", "train", "evaluate", "report"}
    guard = {"polygrain.train", "polygrain.train.guard"}
    checked = 0
    for sidecar in built.root.glob("records/**/*.json"):
        folder = built.root / sidecar.parent.relative_to(built.root / "records") / "code"
        code = folder / sidecar.name if (folder / sidecar.name).is_file() else folder / sidecar.stem / sidecar.name
        loaded = set(json.loads(sidecar.read_text())["modules"])
        numeric = {name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in rooms}
        assert numeric - guard <= set(json.loads(code.read_text())), sidecar
        checked += len(numeric)
    assert checked > 50


def test_git_tracks_no_output(built):
    assert built.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize("target", [f"{RUN}/results/linear.json", pytest.param(SMOKE, marks=pytest.mark.long)])
def test_one_core_gives_the_same_bytes_as_two(target, built, tmp_path):
    other = make_checkout(tmp_path / "one")
    other.build(target, cores=1)
    claims = other.claims()
    assert target in claims
    assert claims == {name: content for name, content in built.claims().items() if target == SMOKE or name in claims}
    assert len(claims) > (20 if target == SMOKE else 5)


def test_an_edit_runs_what_depends_on_it_and_a_remark_or_a_revert_runs_nothing(copy_of_built):
    checkout = copy_of_built()
    chain = {"pretrain": 1, "features": 1, "evaluate": 5, "table": 1}
    source = checkout.root / "src/polygrain/methods/simclr.py"
    text = source.read_text()
    source.write_text(text.replace("\n\n\n", "\n\n\n\n# a remark\n") + "\n# another\n")
    assert checkout.planned() == {}
    source.write_text(text + "\nCHANGED = 1\n")
    assert checkout.planned() == chain
    source.write_text(text)
    params = checkout.root / "params/method/simclr.yaml"
    before = params.read_text()
    values = yaml.safe_load(before)
    values["values"]["temperature"] = 0.31
    params.write_text(yaml.safe_dump(values))
    assert checkout.planned() == chain
    params.write_text(before)
    assert checkout.planned() == {}


def test_an_edited_protocol_runs_alone(copy_of_built):
    checkout = copy_of_built()
    params = checkout.root / "params/evaluate/linear.yaml"
    text = params.read_text()
    assert "iterations: 300" in text
    params.write_text(text.replace("iterations: 300", "iterations: 299"))
    runs = len(list(checkout.root.glob("runs/smoke/**/results/linear.json")))
    assert checkout.planned() == {"evaluate": runs, "table": 1}


def test_mistakes_in_params_and_paths_are_one_line_that_names_the_nearest(fresh, copy_of_built):
    checkout = copy_of_built()
    for target, words in {
        f"{RUN}/checkpoint.safetensors".replace("simclr", "simclrr"): "no method 'simclrr'; did you mean 'simclr'?",
        f"{RUN}/checkpoint.safetensors".replace("base", "bse"): "simclr has no variant 'bse'; did you mean 'base'?",
        "reports/smoek/table1.pdf": "no scale 'smoek'; did you mean 'smoke'?",
        "reports/smoke/tabel1.pdf": "no such table; did you mean 'table1'?",
    }.items():
        done = checkout.run("snakemake", "-n", target, check=False)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr
    params = checkout.root / "params/method/simclr.yaml"
    params.write_text(params.read_text().replace("temperature:", "temprature:"))
    done = checkout.run("snakemake", "-n", SMOKE, check=False)
    assert done.returncode != 0
    assert "unknown key 'method.values.temprature'; did you mean 'temperature'?" in done.stdout + done.stderr


def test_an_unknown_workflow_setting_is_refused_and_a_data_folder_is_passed_on(copy_of_built, tmp_path):
    checkout = copy_of_built()
    done = checkout.run("snakemake", "-n", SMOKE, "--config", "dataa=x", check=False)
    assert done.returncode != 0
    assert "dataa" in done.stdout + done.stderr
    (tmp_path / "sets").mkdir()
    done = checkout.run(
        *("snakemake", "--cores", "1", "--force", "data/animal-mnist/manifest.json"),
        *("--config", f"data={tmp_path / 'sets'}"),
        check=False,
        POLYGRAIN_CACHE=str(tmp_path / "cache"),
        PIP_INDEX_URL="http://127.0.0.1:9",
        PIP_CONFIG_FILE=os.devnull,
        PIP_RETRIES="0",
    )
    assert done.returncode != 0
    log = (checkout.root / "logs/data/animal-mnist/prepare.log").read_text()
    assert f"no animal_mnist-0.4-py3-none-any.whl in {tmp_path / 'sets'}" in log
    assert "pip download failed" in log
    assert "Set POLYGRAIN_DATA" in log


def test_a_corrupted_data_set_stops_the_training_with_one_line(copy_of_built):
    checkout = copy_of_built()
    images = checkout.root / "data/fashion-mnist/images.npy"
    images.chmod(0o644)
    with images.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff\x00\xff")
    done = checkout.run("polygrain", "pretrain", RUN, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "images.npy" in done.stderr


def test_a_truncated_checkpoint_stops_the_features_with_one_line(copy_of_built):
    checkout = copy_of_built()
    path = checkout.root / RUN / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    features = checkout.root / RUN / "features.safetensors"
    features.unlink()
    done = checkout.run("polygrain", "features", RUN, check=False)
    assert done.returncode == 2
    assert "checkpoint.safetensors" in done.stderr
    assert not features.exists()


def test_a_killed_workflow_takes_its_training_along_and_the_next_one_goes_on(copy_of_built, built):
    checkout = copy_of_built()
    (checkout.root / RUN / "checkpoint.safetensors").unlink()
    smoke = checkout.root / "params/scale/smoke.yaml"
    slow = smoke.read_text().replace("encoder_passes: 9216", "encoder_passes: 921600")
    smoke.write_text(slow)
    environment = {**os.environ, "PYTHONPATH": str(checkout.root / "src")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    target = f"{RUN}/checkpoint.safetensors"
    workflow = subprocess.Popen(
        ["snakemake", "--cores", "1", target],
        cwd=checkout.root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = checkout.root / RUN / "scratch/state.pt"
    wait_for(state.exists, 60)
    job = int((checkout.root / RUN / "scratch/lock").read_text())
    os.kill(workflow.pid, signal.SIGKILL)
    workflow.wait()
    wait_for(lambda: not Path(f"/proc/{job}").exists(), 20)
    assert not (checkout.root / target).exists()
    advice = checkout.run("polygrain", "doctor").stdout
    assert "snakemake --unlock" in advice
    checkout.run("polygrain", "doctor", "--unlock")
    shutil.copy2(built.root / "params/scale/smoke.yaml", smoke)
    checkout.run("snakemake", "--cores", "1", "--rerun-incomplete", target)
    assert (checkout.root / target).read_bytes() == (built.root / target).read_bytes()


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)

"""The record's promises, a clone and a remote each: what was recorded comes back, and only what changed is trained."""

import shutil
from pathlib import Path

import pytest
import yaml
from workflow_checkout import SMOKE, Checkout

RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"
CHAIN = {"pretrain": 1, "features": 1, "evaluate": 5, "table": 1}

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def origin(recorded: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The recorded smoke table, committed and pushed to a folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("origin")
    shutil.copytree(recorded.root, folder / "project", symlinks=True)
    checkout = Checkout(folder / "project")
    checkout.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    checkout.run("dvc", "push", "--quiet")
    checkout.run("git", "add", "--all")
    checkout.run("git", "commit", "--quiet", "--message", "recorded")
    return checkout


@pytest.fixture
def clone(origin: Checkout, tmp_path: Path) -> Checkout:
    origin.run("git", "clone", "--quiet", str(origin.root), str(tmp_path / "clone"))
    return Checkout(tmp_path / "clone")


def edit_temperature(checkout: Checkout) -> str:
    """Change one parameter of one method; returns what the file held."""
    params = checkout.root / "params/method/simclr.yaml"
    before = params.read_text()
    values = yaml.safe_load(before)
    values["values"]["temperature"] = 0.31
    params.write_text(yaml.safe_dump(values))
    return before


def test_a_clone_with_a_remote_trains_nothing_and_gives_the_committed_bytes(clone: Checkout, origin: Checkout) -> None:
    said = clone.run("polygrain", "restore", SMOKE).stdout
    assert said.splitlines()[-1] == "nothing to train: everything is in place"
    assert clone.planned() == {}
    assert clone.claims() == origin.claims()

    (clone.root / SMOKE).unlink()
    log = clone.build(cores=1)
    assert "rule table" in log
    assert "rule pretrain" not in log
    assert clone.claims() == origin.claims()

    params = clone.root / "params/method/simclr.yaml"
    before = edit_temperature(clone)
    assert clone.planned() == CHAIN
    params.write_text(before)
    assert clone.planned() == {}

    clone.run("polygrain", "record", SMOKE)
    assert clone.planned() == {}
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.long
def test_restoring_an_edited_tree_leaves_its_chain_to_train_and_says_so(clone: Checkout) -> None:
    (clone.root / ".snakemake/locks").mkdir(parents=True)
    (clone.root / ".snakemake/locks/0.input.lock").touch()
    refused = clone.run("polygrain", "restore", SMOKE, check=False)
    assert refused.returncode == 2
    assert "polygrain doctor --unlock" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    (clone.root / ".snakemake/locks/0.input.lock").unlink()

    edit_temperature(clone)
    lines = clone.run("polygrain", "restore", SMOKE).stdout.splitlines()
    assert lines[-1] == "snakemake runs 1 training (4 jobs in all)"
    assert clone.planned() == CHAIN
    stale = next(line for line in lines if line.startswith("pretrain-smoke-fashion-mnist@simclr-base-seed0"))
    assert "stale" in stale
    assert "method.values.temperature" in stale
    assert "now it is 0.31" in stale
    assert not (clone.root / SMOKE).exists()
    # a run can be asked for alone, and a file that nothing makes is named
    other = "runs/smoke/fashion-mnist/random/base/seed0"
    assert clone.run("polygrain", "restore", f"{other}/checkpoint.safetensors").stdout.splitlines()[-1] == (
        "nothing to train: everything is in place"
    )
    wrong = clone.run("polygrain", "restore", f"{other}/checkpoint.bin", check=False)
    assert (wrong.returncode, "no job makes it" in wrong.stderr) == (2, True)


@pytest.mark.long
def test_an_edit_that_was_run_and_taken_back_gets_the_stored_bytes(origin: Checkout, tmp_path: Path) -> None:
    shutil.copytree(origin.root, tmp_path / "project", symlinks=True)
    checkout = Checkout(tmp_path / "project")
    before = edit_temperature(checkout)
    target = f"{RUN}/results/linear.json"
    checkout.build(target)
    edited = checkout.claims()
    changed = {name for name, content in origin.claims().items() if edited.get(name) != content}
    assert f"{RUN}/checkpoint.safetensors" in changed
    (checkout.root / "params/method/simclr.yaml").write_text(before)
    assert checkout.planned() == CHAIN  # the edited checkpoint is never accepted
    checkout.run("polygrain", "restore", SMOKE)
    assert checkout.planned() == {}
    assert checkout.claims() == origin.claims()
    assert not (checkout.root / "records" / RUN / "pretrain.json").exists()  # it described the other checkpoint

"""A data set of photographs and the folder that it comes from: what changes there, and what a record brings back."""

import os
import shutil
from pathlib import Path

import pytest
from workflow_checkout import Checkout, make_checkout
from workflow_photos import add_photos, make_photos, photos_table
from workflow_world import SCALE

MANIFEST = "data/photos/manifest.json"
TABLE = "reports/tiny-seeds1/photos.pdf"
RUN = "runs/tiny/photos/random/base"

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "checkout"
    root.mkdir()
    checkout = make_checkout(root)
    add_photos(checkout.root)
    return checkout


def said(checkout: Checkout, *arguments: str, data: Path | None, target: str = MANIFEST) -> str:
    """What one run of Snakemake printed."""
    where = ["--config", f"data={data}"] if data else []
    done = checkout.run("snakemake", "--cores", "1", *arguments, *where, "--", target, POLYGRAIN_CACHE=str(os.devnull))
    return done.stdout + done.stderr


def test_photographs_that_change_are_packed_anew_and_others_are_not(
    checkout: Checkout, photos: Path, tmp_path: Path
) -> None:
    source = tmp_path / "sets"
    shutil.copytree(photos, source)
    assert "rule prepare_encoded" in said(checkout, data=source)
    before = (checkout.root / MANIFEST).read_bytes()
    assert "Nothing to be done" in said(checkout, data=source)
    (source / "photos/train/bars/000.png").rename(source / "photos/train/bars/renamed.png")
    (source / "photos/val/bars/000.png").unlink()
    change = f"{source / 'photos'}: 1 added, 2 removed"
    assert change in checkout.run("polygrain", "doctor").stdout
    assert f"data/photos: its source has changed, {change}" in said(checkout, "-n", data=source)
    assert "rule prepare_encoded" in said(checkout, data=source)
    assert (checkout.root / MANIFEST).read_bytes() != before
    assert "data/photos" not in checkout.run("polygrain", "doctor").stdout
    assert "Nothing to be done" in said(checkout, data=None)
    assert "rule prepare_encoded" in said(checkout, data=photos)
    assert (checkout.root / MANIFEST).read_bytes() == before


def test_a_restored_copy_starts_a_run_once_its_photographs_are_there(
    checkout: Checkout, photos: Path, tmp_path: Path
) -> None:
    (checkout.root / "params/table/photos.yaml").write_text(photos_table("linear"))
    (checkout.root / "params/scale/tiny.yaml").write_text(SCALE.format(workers=0))
    said(checkout, data=photos, target=TABLE)
    checkout.run("polygrain", "record", TABLE)
    assert str(photos) not in (checkout.root / "dvc.lock").read_text()
    checkout.run("git", "add", "--all")
    checkout.run("git", "commit", "-q", "-m", "record")
    clone = Checkout(tmp_path / "clone")
    checkout.run("git", "clone", "-q", str(checkout.root), str(clone.root))
    clone.run("dvc", "cache", "dir", "--local", str(checkout.root / ".dvc/cache"))
    done = clone.run("polygrain", "restore", TABLE).stdout
    assert "data/photos: its images are on no record" in done
    assert "nothing to train: everything is in place" in done
    assert "Nothing to be done" in said(clone, data=None, target=TABLE)
    assert "Nothing to be done" in said(clone, data=photos, target=TABLE)
    features = f"{RUN}/seed1/features.safetensors"
    refused = clone.run("snakemake", "--cores", "1", features, check=False)
    assert refused.returncode != 0
    assert "photos: no source answered" in clone.logs()
    said(clone, data=photos, target=features)
    shards = [sorted((root / "data/photos/shards").glob("*.bin")) for root in (checkout.root, clone.root)]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    assert "its images" not in clone.run("polygrain", "restore", TABLE).stdout
    assert "Nothing to be done" in said(clone, data=photos, target=TABLE)

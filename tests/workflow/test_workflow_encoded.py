"""A folder of photographs through the whole workflow: packed as shards, trained on in colour, judged with grey sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from workflow_photos import CLASSES, TEST, TRAIN, add_photos, make_photos

RUN = "runs/smoke/photos/smog/base/seed0"

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("sets"))


def test_a_folder_of_photographs_goes_from_files_to_results(copy_of_built, photos: Path) -> None:
    checkout = copy_of_built()
    add_photos(checkout.root)
    target = f"{RUN}/results/linear.json"
    checkout.run("snakemake", "--cores", "2", "--config", f"data={photos}", "--", target)
    manifest = json.loads((checkout.root / "data/photos/manifest.json").read_text())
    assert manifest["splits"] == {"train": 3 * TRAIN - 60, "validation": 60, "test": 3 * TEST}
    assert (checkout.root / "data/photos/shards/shard-00000.bin").is_file()
    values = json.loads((checkout.root / target).read_text())["values"]
    assert {"photos/top1", "animal-mnist/top1"} <= set(values)
    with np.load(checkout.root / RUN / "results/linear.npz") as predictions:
        assert np.bincount(predictions["photos.label"]).tolist() == [TEST] * len(CLASSES)
        right = predictions["photos.predicted"] == predictions["photos.label"]
    assert right.mean() == pytest.approx(values["photos/top1"])
    done = checkout.run("snakemake", "-n", "--config", f"data={photos}", "--", target)
    assert "Nothing to be done" in done.stdout + done.stderr

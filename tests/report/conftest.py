"""A small project on disk: five rows of three seeds with 40 test images each, and the resolved table over them."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polygrain.evaluate.result import Result, classified
from polygrain.provenance.files import sha256_bytes, write_text

HEADER = "row,method,backbone,dataset,protocol,metric,value,unit,source\n"
REPORTED = HEADER + 'plain,Plain,RN-50,Big,linear evaluation,top-1,0.8460,fraction,"Some README, table 2"\n'

# Of 40 test images, how many each seed gets right: method -> protocol -> seeds.
RIGHT = {
    "random": {"knn": (10, 12, 11), "linear": (16, 15, 17)},
    "pca": {"knn": (14, 13, 15), "linear": (12, 11, 13)},
    "plain": {"knn": (30, 34, 32), "linear": (16, 17, 18)},
    "group": {"knn": (30, 34, 32), "linear": (30, 36, 33)},
    "cheap": {"knn": (38, 40, 39), "linear": (39, 40, 38)},
}


def result(right: int, protocol: str, note: str = "", images: int = 40) -> Result:
    labels = np.arange(images, dtype=np.int64) % 10
    predicted = np.where(np.arange(images) < right, labels, (labels + 1) % 10)
    values, examples = classified("toy", predicted, labels, 7 * np.arange(images, dtype=np.int64))
    return Result(values, {}, {"toy": examples}, note)


def row(label: str, method: str, passes: float, **extra: Any) -> dict[str, Any]:
    runs = [f"runs/cpu/toy/{method}/base/seed{seed}" for seed in (0, 1, 2)]
    hashes = {part: sha256_bytes(f"{method} {part}".encode()) for part in ("config", "code", "environment")}
    facts = {"images_seen": passes / 3, "encoder_passes": passes}
    return {
        "label": label,
        "method": method,
        "runs": runs,
        "facts": facts,
        "inputs": dict.fromkeys(runs, hashes),
    } | extra


def resolved() -> dict[str, Any]:
    return {
        "name": "Table 9",
        "title": "Toy data",
        "caption": "Top-1 accuracy (%).",
        "dataset": "toy",
        "scale": "cpu",
        "seeds": [0, 1, 2],
        "groups": [
            {"label": "Controls", "rows": [row("Random", "random", 0), row("PCA", "pca", 0)]},
            {
                "label": "Methods",
                "best": True,
                "rows": [
                    row("Plain", "plain", 1_199_616.0, note="A baseline."),
                    row("Group", "group", 1_200_000.0, reconstructed="the queue"),
                    row("Cheap", "cheap", 600_000.0),
                ],
            },
        ],
        "columns": [
            {"id": "knn", "group": "Toy", "label": "k-NN", "protocol": "knn", "value": "toy/top1"},
            {"id": "linear", "group": "Toy", "label": "linear", "protocol": "linear", "value": "toy/top1"},
            {"id": "passes", "label": "passes", "fact": "encoder_passes"},
            {"id": "cited", "label": "cited", "reported": True, "note": "Not comparable."},
        ],
        "compare": {
            "columns": ["knn", "linear"],
            "reference": ["Random", "PCA"],
            "level": 0.05,
        },
        "reported": [{"row": "Plain", "column": "cited", "record": "plain"}],
        "reported_sources": ["params/reported/toy.csv"],
        "footnotes": ["Passes: units spent."],
        "manifests": ["data/toy/manifest.json"],
    }


@pytest.fixture
def config() -> dict[str, Any]:
    return copy.deepcopy(resolved())


def write_project(root: Path) -> Path:
    write_text(root / "data/toy/manifest.json", '{"name": "toy"}\n')
    write_text(root / "params/reported/toy.csv", REPORTED)
    for method, protocols in RIGHT.items():
        for protocol, seeds in protocols.items():
            for seed, right in enumerate(seeds):
                result(right, protocol).save(root / f"runs/cpu/toy/{method}/base/seed{seed}/results", protocol)
    return root


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("template"))


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "project")


@pytest.fixture
def make_result() -> Callable[..., Result]:
    return result

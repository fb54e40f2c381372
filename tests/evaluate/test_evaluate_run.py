import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polygrain.config.run_stages import EVALUATE
from polygrain.evaluate.result import Result
from polygrain.evaluate.run import run
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import Stage

PROTOCOLS = {
    "knn": {"k": [5, 20], "temperature": 0.07, "byte_budget": 1 << 20},
    "linear": {
        "labels": ["all", "10%"],
        "rates": [0.01, 0.1],
        "decays": [0.0, 0.01],
        "epochs": 3,
        "minimum_steps": 20,
        "batch": 64,
        "momentum": 0.9,
        "seed": 0,
    },
}


@pytest.fixture
def stored(features, tmp_path: Path) -> Path:
    path = tmp_path / "features.safetensors"
    features(names=("toy", "other")).save(path)
    return path


def stage(protocol: str, features: Path, values: dict[str, object], datasets: tuple[str, ...] = ("toy",)) -> Stage:
    """A protocol's stage on a features file."""
    config = {"protocol": protocol, "needs": "features", "datasets": list(datasets), "values": values}
    shaped = EVALUATE.shape(features.parent, protocol, config)
    return replace(shaped, inputs=(features,))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_writes_its_two_files(stored: Path, protocol: str) -> None:
    run(stage(protocol, stored, PROTOCOLS[protocol], ("toy", "other")))
    results = stored.parent / "results"
    assert sorted(path.name for path in results.iterdir()) == [f"{protocol}.json", f"{protocol}.npz"]
    result = Result.load(results, protocol)
    assert all(result.agrees(name) for name in result.values)
    assert {key.partition("/")[0] for key in result.selected} == {"toy", "other"}


def test_a_protocol_sees_the_data_sets_that_its_stage_names(stored: Path) -> None:
    run(stage("knn", stored, PROTOCOLS["knn"], ("other",)))
    assert {key.partition("/")[0] for key in Result.load(stored.parent / "results", "knn").selected} == {"other"}
    with pytest.raises(UserError, match="hold no data set third"):
        run(stage("knn", stored, PROTOCOLS["knn"], ("third",)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_processes_write_the_same_bytes_and_load_no_image_library(stored: Path, protocol: str) -> None:
    code = (
        "import json, sys; from dataclasses import replace; from pathlib import Path\n"
        "from polygrain.provenance.stage import Stage; from polygrain.evaluate.run import run\n"
        "config = json.loads(sys.argv[1]); features = Path(sys.argv[2]); name = config['protocol']\n"
        "outputs = tuple(features.parent / 'there' / f'{name}.{kind}' for kind in ('json', 'npz'))\n"
        "run(Stage('evaluate', name, features.parent, config, (), (features,), outputs))\n"
        "print(sorted({'torchvision', 'timm', 'hydra', 'polygrain.backbones', 'polygrain.views'} & set(sys.modules)))"
    )
    here = stage(protocol, stored, PROTOCOLS[protocol])
    run(here)
    arguments = [json.dumps(here.config), str(stored)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for path in here.outputs:
        assert path.read_bytes() == (stored.parent / "there" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**PROTOCOLS["knn"], "temprature": 1.0}, "unknown key 'temprature'; did you mean 'temperature'"),
        ({"k": [5], "temperature": 0.1}, r"knn\.values: key 'byte_budget' \(int\) is missing"),
        ({**PROTOCOLS["knn"], "k": "five"}, r"key 'k' must be list\[int\], not 'five'"),
    ],
)
def test_a_wrong_value_stops_before_anything_is_written(stored: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(stage("knn", stored, values))
    assert not (stored.parent / "results").exists()


def test_missing_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.safetensors: not found"):
        run(stage("knn", tmp_path / "features.safetensors", PROTOCOLS["knn"]))

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from test_evaluate_features import RESNET, config, prefixed, write_packed

from polygrain.backbones.load import load_backbone
from polygrain.config.run_stages import EVALUATE
from polygrain.config.signature import values_model
from polygrain.evaluate import run as entry
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import ACCURACY, Number, Result
from polygrain.evaluate.run import run
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import Stage

PROTOCOLS = {
    "knn": {
        "spaces": ["raw", "whitened"],
        "k": [5, 20],
        "temperature": 0.07,
        "shrinkage": 0.001,
        "byte_budget": 1 << 20,
    },
    "linear": {"labels": ["all", "10%"], "decays": [0.1, 0.001], "folds": 4, "iterations": 50, "tolerance": 1e-5},
    "few-shot": {"shots": [1, 5], "draws": 3, "strengths": [1.0, 0.1], "seed": 0},
    "clustering": {"over": 2, "restarts": 2, "iterations": 20, "seed": 0},
    "feature-statistics": {"images": 100, "byte_budget": 1 << 20},
    "superclasses": {
        "groups": {name: {"a": [0, 1], "b": [2, 3, 4]} for name in ("toy", "other")},
        "spaces": ["raw"],
        "k": [5, 20],
        "temperature": 0.07,
        "shrinkage": 0.001,
        "byte_budget": 1 << 20,
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
    assert {name.partition("/")[0] for name in result.values} == {"toy", "other"}


def test_a_protocol_sees_the_data_sets_that_its_stage_names(stored: Path) -> None:
    run(stage("knn", stored, PROTOCOLS["knn"], ("other",)))
    assert {key.partition("/")[0] for key in Result.load(stored.parent / "results", "knn").selected} == {"other"}
    with pytest.raises(UserError, match="holds no data set third"):
        run(stage("knn", stored, PROTOCOLS["knn"], ("third",)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_processes_write_the_same_bytes_and_load_what_they_need(stored: Path, protocol: str) -> None:
    code = (
        "import json, sys; from dataclasses import replace; from pathlib import Path\n"
        "from polygrain.provenance.stage import Stage; from polygrain.evaluate.run import run\n"
        "config = json.loads(sys.argv[1]); features = Path(sys.argv[2]); name = config['protocol']\n"
        "outputs = tuple(features.parent / 'there' / f'{name}.{kind}' for kind in ('json', 'npz'))\n"
        "run(Stage('evaluate', name, features.parent, config, (), (features,), outputs))\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'hydra', 'polygrain.backbones', 'polygrain.views'}"
        " & set(sys.modules)))"
    )
    here = stage(protocol, stored, PROTOCOLS[protocol])
    run(here)
    arguments = [json.dumps(here.config), str(stored)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("['torch']" if protocol == "linear" else "[]")
    for path in here.outputs:
        assert path.read_bytes() == (stored.parent / "there" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**PROTOCOLS["knn"], "temprature": 1.0}, r"unknown key 'knn\.values\.temprature'; did you mean 'temperature'"),
        (
            {key: value for key, value in PROTOCOLS["knn"].items() if key != "byte_budget"},
            r"key 'knn\.values\.byte_budget' \(int\) is missing",
        ),
        ({**PROTOCOLS["knn"], "k": "five"}, r"key 'knn\.values\.k' must be list\[int\], not 'five'"),
        ({**PROTOCOLS["knn"], "spaces": ["white"]}, r"key 'knn\.values\.spaces"),
    ],
)
def test_a_wrong_value_stops_before_any_job(values: dict[str, object], message: str) -> None:
    """The job graph is not built, by this model: `polygrain.config.models.load_run`."""
    with pytest.raises(UserError, match=message):
        values_model("polygrain.evaluate.knn", "evaluate").of("run", values, "knn.values")


def test_missing_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.safetensors: not found"):
        run(stage("knn", tmp_path / "features.safetensors", PROTOCOLS["knn"]))


@pytest.mark.parametrize("needs", ["tokens", "backbone"])
def test_a_protocol_that_needs_the_network_is_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: str
) -> None:
    """The first data set of the stage is not the one of pre-training, whose statistics every image is shown with."""
    torch.manual_seed(0)
    network = load_backbone(**RESNET, channels=1)
    save_file(
        prefixed(network),
        tmp_path / "checkpoint.safetensors",
        metadata={"polygrain": json.dumps({"format": 1, "encoder": "backbone."})},
    )
    monkeypatch.chdir(tmp_path)
    write_packed(tmp_path / "data/toy", channels=1, size=16, seed=1)
    write_packed(tmp_path / "data/other", channels=3, size=20, seed=2)
    seen: list[Encoder] = []

    def evaluate(encoder: Encoder, *, layer: int) -> Result:
        seen.append(encoder)
        return Result({"other/layer": Number(layer / 10, ACCURACY)})

    monkeypatch.setitem(sys.modules, "polygrain.evaluate.own", SimpleNamespace(evaluate=evaluate))  # type: ignore[arg-type]
    more = {key: value for key, value in config().items() if key != "datasets"}
    more |= {"formats": {"toy": "pixels", "other": "pixels"}, "datasets": ["other"], "pretrained": "toy"}
    entry.run(EVALUATE.shape(tmp_path, "own", {"protocol": "own", "needs": needs, "values": {"layer": 3}, **more}))
    assert Result.load(tmp_path / "results", "own").values == {"other/layer": (0.3, ACCURACY)}
    (encoder,) = seen
    assert list(encoder.datasets) == ["other"]
    assert (encoder.mean, encoder.std, encoder.size) == ([0.4], [0.3], 16)
    with torch.no_grad():
        (rows, images), (_, frozen) = (
            next(found("other", encoder.positions("other", "test"))) for found in (encoder.views, encoder.encoded)
        )
        assert images.shape[1:] == (1, 16, 16)
        torch.testing.assert_close(network.eval()(images).map, frozen.map, rtol=0, atol=1e-5)
    assert len(rows) == 30

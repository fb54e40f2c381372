import json
import subprocess
import sys
from pathlib import Path

import pytest

from polygrain.evaluate.result import Result
from polygrain.evaluate.run import evaluate
from polygrain.provenance.errors import UserError

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


def test_each_protocol_writes_its_two_files(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    evaluate({"protocols": PROTOCOLS, "seed": 3}, stored, out)
    assert sorted(path.name for path in out.iterdir()) == ["knn.json", "knn.npz", "linear.json", "linear.npz"]
    for protocol in PROTOCOLS:
        result = Result.load(out, protocol)
        assert all(result.agrees(name) for name in result.values)
    assert json.loads((out / "knn.json").read_text())["selected"].keys() == {"toy", "other"}
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2/2" in printed.err


def test_two_processes_write_the_same_bytes_and_load_no_image_library(stored: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from polygrain.provenance.pins import pin_torch; pin_torch()\n"
        "from polygrain.evaluate.run import evaluate\n"
        "evaluate(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "print(sorted({'torchvision', 'timm', 'polygrain.backbones', 'polygrain.views'} & set(sys.modules)))"
    )
    evaluate({"protocols": PROTOCOLS}, stored, tmp_path / "here")
    arguments = [json.dumps({"protocols": PROTOCOLS}), str(stored), str(tmp_path / "there")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("protocols", "message"),
    [
        ({"knm": {}}, "protocols: no protocol 'knm'; did you mean 'knn'"),
        ({"store": {}}, "protocols: no protocol 'store'"),
        ({"knn": {**PROTOCOLS["knn"], "temprature": 1.0}}, "unknown key 'temprature'; did you mean 'temperature'"),
        ({"knn": {"k": [5], "temperature": 0.1}}, r"protocols\.knn: key 'byte_budget' \(int\) is missing"),
        ({"knn": {**PROTOCOLS["knn"], "k": "five"}}, r"key 'k' must be list\[int\], not 'five'"),
    ],
)
def test_a_wrong_name_or_value_stops_before_anything_is_written(
    stored: Path, tmp_path: Path, protocols: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate({"protocols": {"linear": PROTOCOLS["linear"], **protocols}}, stored, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_missing_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.safetensors: not found"):
        evaluate({"protocols": PROTOCOLS}, tmp_path / "features.safetensors", tmp_path / "results")

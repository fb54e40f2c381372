"""What evaluation costs at cpu scale: `python tests/evaluate/bench_evaluate.py`.

The cost lines in params/evaluate come from here. Two data sets of noise go through an untrained encoder, each with
12,000 train, 6,000 validation and 10,000 test images of 28 px in 10 classes. Protocols that run the network have one.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from polygrain.provenance.pins import pin_process, pin_torch

ROWS = {"train": 12_000, "validation": 6_000, "test": 10_000}
NAMES = (
    "features", "knn", "linear", "logistic", "few-shot", "clustering", "feature-statistics",
    "retrieval", "correspondence", "segments", "robustness",
)  # fmt: skip


@contextmanager
def measured(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{what}: {time.process_time() - cpu:.1f} s of one core, {time.perf_counter() - wall:.1f} s on the clock")


def main() -> None:
    import yaml
    from safetensors.torch import save_file
    from test_evaluate_features import write_packed

    from polygrain.backbones.load import load_backbone
    from polygrain.evaluate.features import extract
    from polygrain.evaluate.given import encoder_of
    from polygrain.evaluate.store import Features

    values = {name: yaml.safe_load(Path(f"params/evaluate/{name}.yaml").read_text(encoding="utf-8")) for name in NAMES}
    backbone = {
        "name": "resnet",
        "widths": [16, 32, 64, 128],
        "strides": [1, 2, 2, 1],
        "blocks": [1] * 4,
        "stem_stride": 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        names, root = ["one", "two"], Path(folder)
        data = {name: write_packed(root / name, channels=1, size=28, seed=0, rows=ROWS, classes=10) for name in names}
        tensors = {
            f"backbone.{key}": value for key, value in load_backbone(**backbone, channels=1).state_dict().items()
        }
        about = json.dumps({"format": 1, "encoder": "backbone."})
        save_file(tensors, root / "checkpoint", metadata={"polygrain": about})
        config = {"backbone": backbone, "datasets": names, "statistics": None}
        config["features"] = {**values["features"], "size": 32}
        with measured("features"):
            extract(config, root / "checkpoint", data, root / "features")
        features = Features.load(root / "features")
        encoder = encoder_of({**config, "datasets": names[:1]}, root / "checkpoint", {"one": data["one"]})
        for name in NAMES[1:]:
            given = features if values[name]["needs"] == "features" else encoder
            with measured(name):
                import_module(f"polygrain.evaluate.{name.replace('-', '_')}").evaluate(given, **values[name]["values"])


if __name__ == "__main__":
    pin_process(sys.argv)
    pin_torch()
    main()

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from polygrain.backbones.contract import from_map
from polygrain.backbones.droppath import set_drop_path_key
from polygrain.backbones.load import load_backbone
from polygrain.config.signature import values_model
from polygrain.data import shards
from polygrain.data.encoded import open_encoded
from polygrain.data.packed import open_packed
from polygrain.evaluate.features import extract, features_of
from polygrain.evaluate.given import Encoder, as_channels
from polygrain.evaluate.store import Features
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, sha256_file
from polygrain.provenance.stage import Stage
from polygrain.views.apply import plain_view
from polygrain.views.crop import central_view

RESNET = {"name": "resnet", "widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 2}
VIT = {"name": "vit", "image_size": 16, "patch": 8, "width": 24, "depth": 2, "heads": 2, "drop_path": 0.1}
ROWS = {"train": 100, "validation": 21, "test": 30}


def write_packed(
    root: Path, *, channels: int, size: int, seed: int, rows: dict[str, int] = ROWS, classes: int = 4
) -> Path:
    """A tiny data set in the packed format: random pixels, class-balanced splits."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    total = sum(rows.values())
    np.save(root / "images.npy", generator.integers(0, 256, (total, channels, size, size), dtype=np.uint8))
    np.save(root / "labels.npy", np.arange(total, dtype=np.int64) % classes)
    order, splits, first = np.arange(total)[::-1].astype(np.int64), {}, 0
    for name, count in rows.items():
        splits[name] = order[first : first + count]
        first += count
    np.savez(root / "splits.npz", **splits)
    files = ("images.npy", "labels.npy", "splits.npz")
    manifest = {
        "format": 1,
        "name": root.name,
        "classes": [f"class {number}" for number in range(classes)],
        "coarse": {"names": ["all"], "of_class": [0] * classes},
        "shape": [channels, size, size],
        "mean": [0.4 + 0.05 * channel for channel in range(channels)],
        "std": [0.3] * channels,
        "splits": rows,
        "files": {name: {"bytes": (root / name).stat().st_size, "sha256": sha256_file(root / name)} for name in files},
        "raw": {},
        "licence": "none",
        "source": "random numbers",
    }
    (root / "manifest.json").write_text(canonical_json(manifest))
    return root


def build(backbone: dict[str, Any], channels: int) -> torch.nn.Module:
    """A backbone whose batch-norm statistics are not those of a fresh one."""
    torch.manual_seed(0)
    network = load_backbone(**backbone, channels=channels)
    network.train()
    set_drop_path_key(network, 0, 0, 64)
    network(torch.randn(64, channels, 16, 16) * 2 + 1)
    return network.eval()


def write_checkpoint(path: Path, tensors: dict[str, Tensor], *, encoder: str = "backbone.", form: int = 1) -> Path:
    save_file(tensors, path, metadata={"polygrain": json.dumps({"format": form, "encoder": encoder})})
    return path


def prefixed(network: torch.nn.Module, prefix: str = "backbone.") -> dict[str, Tensor]:
    return {f"{prefix}{key}": value.clone().contiguous() for key, value in network.state_dict().items()}


def config(backbone: dict[str, Any] = RESNET, **features: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"size": 16, "resize": None, "batch": 32, "workers": 0}
    values |= {"train": None, "validation": None, "test": None, **features}
    return {"backbone": backbone, "datasets": ["grey", "colour"], "statistics": None, "features": values}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        "grey": write_packed(root / "grey", channels=1, size=16, seed=1),
        "colour": write_packed(root / "colour", channels=3, size=20, seed=2),
    }


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of several sizes, two classes, packed by the real reader."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("encoded")
    generator = np.random.default_rng(5)
    for part, count in (("train/a", 11), ("train/b", 11), ("val/a", 3), ("val/b", 3)):
        (source / "photos" / part).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (int(generator.integers(18, 40)), 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(source / "photos" / part / f"{number:02d}.jpg")
    settings = {
        "name": "photos", "reader": "image-folder", "format": "encoded", "validation": 4, "test": 0, "seed": 0,
        "folder": None, "classes": None, "expected": None, "statistics": None, "licence": "none", "source": "made",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYGRAIN_DATA", str(source))
        shards.prepare(settings, out)
    return out


@pytest.mark.parametrize("backbone", [RESNET, VIT], ids=["resnet", "vit"])
def test_features_are_those_of_the_encoder_image_by_image(
    data: dict[str, Path], tmp_path: Path, backbone: dict[str, Any]
) -> None:
    network = build(backbone, 1)
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", {**prefixed(network), "head.weight": torch.zeros(3)})
    extract(config(backbone), checkpoint, data, tmp_path / "f.safetensors")
    read = Features.load(tmp_path / "f.safetensors")
    assert read.datasets.keys() == {"grey", "colour"}
    for name, root in data.items():
        dataset = read.datasets[name]
        assert dataset.classes == 4
        images, labels, splits = (
            np.load(root / "images.npy"),
            np.load(root / "labels.npy"),
            np.load(root / "splits.npz"),
        )
        for split in ROWS:
            got = getattr(dataset, split)
            np.testing.assert_array_equal(got.indices, splits[split])
            np.testing.assert_array_equal(got.labels, labels[splits[split]])
            for row in (0, 5, len(got) - 1):
                image = torch.from_numpy(images[splits[split][row : row + 1]])
                with torch.no_grad():  # with the statistics of the first data set, for both
                    expected = network(plain_view(as_channels(image, 1), 16, [0.4], [0.3])).pooled[0].numpy()
                np.testing.assert_allclose(got.features[row], expected, atol=1e-5)


@pytest.mark.parametrize("resize", [None, 18])
def test_encoded_images_are_shown_by_their_centre_or_whole(
    encoded: Path, data: dict[str, Path], tmp_path: Path, resize: int | None
) -> None:
    """And a data set of pixels beside them, whole as ever, with the encoded set's statistics and channels."""
    network, opened = build(RESNET, 3), open_encoded(encoded)
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(network))
    values = {**config(resize=resize), "datasets": ["photos", "grey"]}
    extract(values, checkpoint, {"photos": encoded, "grey": data["grey"]}, tmp_path / "f.safetensors")
    other = {**values, "features": {**values["features"], "workers": 2, "batch": 7}}
    extract(other, checkpoint, {"photos": encoded, "grey": data["grey"]}, tmp_path / "7.safetensors")
    read = Features.load(tmp_path / "f.safetensors").datasets
    parallel = Features.load(tmp_path / "7.safetensors").datasets["photos"].test
    np.testing.assert_allclose(parallel.features, read["photos"].test.features, atol=1e-5)
    same = {**values, "features": {**values["features"], "workers": 2}}
    extract(same, checkpoint, {"photos": encoded, "grey": data["grey"]}, tmp_path / "2.safetensors")
    assert (tmp_path / "2.safetensors").read_bytes() == (tmp_path / "f.safetensors").read_bytes()
    assert (read["photos"].classes, len(read["photos"].train)) == (2, 18)
    for split in ("train", "validation", "test"):
        got = getattr(read["photos"], split)
        np.testing.assert_array_equal(got.indices, opened.split(split))
        np.testing.assert_array_equal(got.labels, opened.labels[opened.split(split)])
        for row, position in enumerate(got.indices.tolist()):
            image = reference.resize(opened.decode(position), [resize] if resize else [16, 16], antialias=True)
            view = reference.normalize(reference.center_crop(image, [16, 16]) / 255, opened.mean, opened.std)
            with torch.no_grad():
                expected = network(view[None]).pooled[0].numpy()
            np.testing.assert_allclose(got.features[row], expected, atol=1e-5)
    whole = np.load(data["grey"] / "images.npy")[read["grey"].test.indices[:1]]
    with torch.no_grad():
        view = plain_view(torch.from_numpy(whole).expand(-1, 3, -1, -1), 16, opened.mean, opened.std)
        np.testing.assert_allclose(read["grey"].test.features[:1], network(view).pooled.numpy(), atol=1e-5)


def test_an_encoded_set_is_shown_in_grey_to_an_encoder_that_saw_grey(
    encoded: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    network, opened = build(RESNET, 1), open_encoded(encoded)
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(network))
    values = {**config(), "datasets": ["grey", "photos"]}
    extract(values, checkpoint, {"grey": data["grey"], "photos": encoded}, tmp_path / "f.safetensors")
    got = Features.load(tmp_path / "f.safetensors").datasets["photos"].test
    image = as_channels(central_view(opened.decode(int(got.indices[2])), 16, None)[None], 1)
    with torch.no_grad():
        expected = network(plain_view(image, 16, [0.4], [0.3])).pooled[0].numpy()
    np.testing.assert_allclose(got.features[2], expected, atol=1e-5)


def test_the_statistics_of_pre_training_are_used(data: dict[str, Path], tmp_path: Path) -> None:
    network = build(RESNET, 1)
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(network))
    extract({**config(), "statistics": {"mean": [0.1], "std": [0.7]}}, checkpoint, data, tmp_path / "f.safetensors")
    for name, root in data.items():
        got = Features.load(tmp_path / "f.safetensors").datasets[name].test
        image = as_channels(torch.from_numpy(np.load(root / "images.npy")[got.indices[:1]]), 1)
        with torch.no_grad():
            expected = network(plain_view(image, 16, [0.1], [0.7])).pooled.numpy()
        np.testing.assert_allclose(got.features[:1], expected, atol=1e-5)
    with pytest.raises(UserError, match="statistics: 3 means and 3 deviations for the 1 channels of grey; give one"):
        extract({**config(), "statistics": {"mean": [0.1] * 3, "std": [0.7] * 3}}, checkpoint, data, tmp_path / "none")


def test_a_centre_larger_than_the_image_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(build(RESNET, 1)))
    with pytest.raises(UserError, match=r"features: resize \(15\) must be at least size \(16\), or null"):
        extract(config(resize=15), checkpoint, data, tmp_path / "f.safetensors")


def test_a_row_has_the_same_bits_whatever_comes_with_it(data: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(build(RESNET, 1)))
    extract(config(), checkpoint, data, tmp_path / "all.safetensors")
    extract(config(train=37, test=3), checkpoint, data, tmp_path / "few.safetensors")
    whole, few = (Features.load(tmp_path / f"{name}.safetensors").datasets["grey"] for name in ("all", "few"))
    assert (len(few.train), len(few.validation), len(few.test)) == (37, 21, 3)
    np.testing.assert_array_equal(few.train.features, whole.train.features[:37])
    np.testing.assert_array_equal(few.test.features, whole.test.features[:3])
    assert (len(whole.labelled("50%")), len(few.labelled("50%"))) == (48, 16)  # 12 and 4 of each of 4 classes


def test_every_batch_has_one_size(data: dict[str, Path]) -> None:
    class Recorder(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            shapes.add(tuple(x.shape))
            return from_map(x)

    shapes: set[tuple[int, ...]] = set()
    grey = open_packed(data["grey"])
    features_of(Encoder(Recorder(), {"grey": grey}, (grey.mean, grey.std), **config()["features"]), "grey")
    assert shapes == {(32, 1, 16, 16)}  # 100, 21 and 30 rows: none is a multiple of 32


def test_equal_builds_give_equal_bytes(data: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(build(RESNET, 1)))
    for name in ("a", "b"):
        torch.manual_seed(ord(name))  # the backbone's own first weights must not shine through
        extract(config(), checkpoint, data, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_evaluated_network_is_the_one_that_the_checkpoint_names(data: dict[str, Path], tmp_path: Path) -> None:
    teacher = build(RESNET, 1)
    student = {key: value * 0 for key, value in prefixed(teacher, "student.").items()}
    both = write_checkpoint(tmp_path / "both", {**student, **prefixed(teacher, "teacher.")}, encoder="teacher.")
    alone = write_checkpoint(tmp_path / "alone", prefixed(teacher))
    for checkpoint in (both, alone):
        extract(config(), checkpoint, data, checkpoint.with_suffix(".features"))
    assert (tmp_path / "both.features").read_bytes() == (tmp_path / "alone.features").read_bytes()


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_checkpoint_is_named(data: dict[str, Path], tmp_path: Path, keep: int) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(build(RESNET, 1)))
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"c\.safetensors: not a whole checkpoint .* pretrain again"):
        extract(config(), checkpoint, data, tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()


def test_a_checkpoint_that_does_not_fit_lists_its_tensors(data: dict[str, Path], tmp_path: Path) -> None:
    whole = prefixed(build(RESNET, 1))
    first, *_, last = sorted(key for key in whole if key.endswith("weight"))
    cases = {
        f"missing: {first.removeprefix('backbone.')}": {key: value for key, value in whole.items() if key != first},
        "unexpected: extra": {**whole, "backbone.extra": torch.zeros(2)},
        f"of another shape: {last.removeprefix('backbone.')}": {**whole, last: torch.zeros(1, 2, 3)},
    }
    for message, tensors in cases.items():
        checkpoint = write_checkpoint(tmp_path / "c.safetensors", tensors)
        with pytest.raises(UserError, match=rf"does not fit backbone resnet \({message}\)"):
            extract(config(), checkpoint, data, tmp_path / "f.safetensors")
    wider = {**RESNET, "widths": [16, 16]}
    with pytest.raises(UserError, match=r"of another shape: .* and \d+ more"):
        extract(config(wider), write_checkpoint(tmp_path / "c", whole), data, tmp_path / "f.safetensors")


def test_other_faults_of_a_checkpoint_are_named(data: dict[str, Path], tmp_path: Path) -> None:
    whole = prefixed(build(RESNET, 1))
    cases = {
        "not found; pretrain the run first": tmp_path / "none",
        "checkpoint format 2, this version reads 1": write_checkpoint(tmp_path / "format", whole, form=2),
        "no tensor under its encoder prefix 'teacher.'": write_checkpoint(tmp_path / "t", whole, encoder="teacher."),
    }
    save_file(whole, tmp_path / "foreign")
    cases["not a whole checkpoint"] = tmp_path / "foreign"
    for message, checkpoint in cases.items():
        with pytest.raises(UserError, match=message):
            extract(config(), checkpoint, data, tmp_path / "f.safetensors")


def test_an_encoder_that_diverged_writes_nothing(data: dict[str, Path], tmp_path: Path) -> None:
    tensors = {
        key: value * float("nan") if value.is_floating_point() else value
        for key, value in prefixed(build(RESNET, 1)).items()
    }
    with pytest.raises(UserError, match=r"grey, train split: row 0 .* encoder has diverged"):
        extract(config(), write_checkpoint(tmp_path / "c", tensors), data, tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key 'features\.trian'; did you mean 'train'"):
        values_model("polygrain.evaluate.given", "Encoder").of("run", config(trian=3)["features"], "features")


@pytest.mark.parametrize("bad", [{"size": 0}, {"batch": 0}, {"train": 0}, {"test": -3}])
def test_values_that_make_no_sense_are_refused(data: dict[str, Path], tmp_path: Path, bad: dict[str, int]) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", prefixed(build(RESNET, 1)))
    with pytest.raises(UserError, match=r"features: size .* must be positive or null"):
        extract(config(**bad), checkpoint, data, tmp_path / "f.safetensors")


def test_channels_are_repeated_or_become_luminance() -> None:
    grey = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    assert torch.equal(as_channels(grey, 1), grey)
    assert torch.equal(as_channels(grey, 3), torch.cat([grey] * 3, dim=1))
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]], dtype=torch.uint8)
    luminance = as_channels(colours.view(5, 3, 1, 1), 1)
    assert luminance.dtype == torch.uint8
    assert luminance.flatten().tolist() == [76, 150, 29, 255, 18]  # 0.299 r + 0.587 g + 0.114 b, rounded
    with pytest.raises(UserError, match="4 channels cannot be shown to an encoder of 3"):
        as_channels(torch.zeros(1, 4, 2, 2, dtype=torch.uint8), 3)


def test_real_images_end_to_end(tmp_path: Path) -> None:
    from polygrain.data.prepare import prepare
    from polygrain.evaluate.run import run as judge

    root = tmp_path / "data"
    try:
        prepare({"name": "fashion-mnist", "reader": "fashion-mnist", "validation": 6000, "test": 0, "seed": 0}, root)
    except UserError as error:
        pytest.skip(str(error))

    torch.manual_seed(0)
    network = load_backbone(**RESNET, channels=1)
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(network))
    values = config(size=32, train=600, validation=300, test=300)
    extract({**values, "datasets": ["fashion-mnist"]}, checkpoint, {"fashion-mnist": root}, tmp_path / "f.safetensors")
    values = {"spaces": ["raw"], "k": [5, 10], "temperature": 0.07, "shrinkage": 0.001, "byte_budget": 1 << 22}
    chosen = {"protocol": "knn", "needs": "features", "datasets": ["fashion-mnist"], "values": values}
    judge(Stage("evaluate", "knn", tmp_path, chosen, (), (tmp_path / "f.safetensors",), (tmp_path / "knn.json",)))
    reached = json.loads((tmp_path / "knn.json").read_text())["values"]["fashion-mnist/top1"]
    assert reached > 0.5  # chance is 0.1; an untrained encoder already tells shoes from shirts

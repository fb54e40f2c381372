import errno
import resource
from pathlib import Path

import numpy as np
import pytest

from polygrain.data import prepare as prepare_module
from polygrain.data.packed import open_packed
from polygrain.data.prepare import balanced_order, prepare, statistics
from polygrain.data.raw import Raw
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file

CONFIG = {"name": "toy", "reader": "toy", "validation": 40, "test": 0, "seed": 3}


def raw(count: int = 400, classes: int = 4, test: int = 80, seed: int = 0) -> Raw:
    generator = np.random.default_rng(seed)
    return Raw(
        images=generator.integers(0, 256, (count, 2, 5, 6)).astype(np.uint8),
        labels=generator.permutation(np.arange(count) % classes).astype(np.int64),
        test=np.arange(count - test, count) if test else None,
        classes=tuple(f"c{k}" for k in range(classes)),
        coarse_names=("all",),
        coarse_of_class=(0,) * classes,
        hashes={"file": "0" * 64},
        licence="none",
        source="made for a test",
    )


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pack a raw data set through the real `prepare`, with a reader of our own."""

    def packed(data: Raw, config: dict = CONFIG, name: str = "toy") -> Path:
        reader = type("Reader", (), {"read": staticmethod(lambda: data)})
        monkeypatch.setitem(__import__("sys").modules, "polygrain.data.readers.toy", reader)
        prepare(config, tmp_path / name)
        return tmp_path / name

    return packed


def test_what_is_packed_is_what_was_read(pack):
    data = raw()
    packed = open_packed(pack(data))
    assert isinstance(packed.images, np.memmap)
    np.testing.assert_array_equal(packed.images, data.images)
    np.testing.assert_array_equal(packed.labels, data.labels)
    train = data.images[packed.split("train")].astype(np.float64) / 255
    np.testing.assert_allclose(packed.mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(packed.std, train.std(axis=(0, 2, 3)), rtol=1e-10)


def test_splits_are_disjoint_complete_and_leave_the_test_split_alone(pack):
    data = raw()
    packed = open_packed(pack(data))
    assert list(packed.splits) == ["train", "validation", "test"]
    parts = {name: set(packed.split(name).tolist()) for name in packed.splits}
    assert parts["test"] == set(data.test.tolist())
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [280, 40, 80]
    assert set.union(*parts.values()) == set(range(400))


def test_without_a_test_split_one_is_made(pack):
    packed = open_packed(pack(raw(test=0), {**CONFIG, "test": 100}))
    assert [len(packed.split(name)) for name in ("train", "validation", "test")] == [260, 40, 100]
    assert np.bincount(packed.labels[packed.split("test")]).tolist() == [25] * 4


def test_every_prefix_of_a_split_is_as_balanced_as_it_can_be(pack):
    packed = open_packed(pack(raw()))
    labels = packed.labels[packed.split("train")]
    for size in range(4, 4 * min(np.bincount(labels))):
        counts = np.bincount(labels[:size], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_a_subset_is_the_front_of_a_split_or_all_of_it(pack):
    packed = open_packed(pack(raw()))
    for size in (0, 1, 28, 280):
        np.testing.assert_array_equal(packed.subset("train", size), packed.split("train")[:size])
    np.testing.assert_array_equal(packed.subset("train", None), packed.split("train"))
    np.testing.assert_array_equal(packed.subset("test", None), packed.split("test"))
    assert np.bincount(packed.labels[packed.subset("train", 28)]).tolist() == [7] * 4


def test_the_manifest_says_nothing_of_shares_of_labels(pack):
    """A protocol takes its share of the rows that were extracted, whatever the data set holds."""
    assert sorted(open_packed(pack(raw())).manifest) == [
        "classes", "coarse", "files", "format", "licence", "mean", "name", "raw", "shape", "source", "splits", "std",
    ]  # fmt: skip


def test_the_order_is_a_function_of_the_seed_alone():
    labels = np.arange(60) % 3
    order = balanced_order(np.arange(60), labels, 5, "train")
    np.testing.assert_array_equal(order, balanced_order(np.arange(60)[::-1].copy(), labels, 5, "train"))
    assert not np.array_equal(order, balanced_order(np.arange(60), labels, 6, "train"))
    assert order[:6].tolist() == [45, 49, 23, 48, 28, 29]


def test_packing_twice_gives_the_same_bytes(pack):
    first, second = pack(raw(), name="a"), pack(raw(), name="b")
    for name in ("images.npy", "labels.npy", "splits.npz", "manifest.json"):
        assert sha256_file(first / name) == sha256_file(second / name)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "splits.npz"])
def test_damage_is_refused_by_name(pack, name):
    root = pack(raw())
    path = root / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{name}: damaged.*rebuild it with `snakemake"):
        open_packed(root)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name}: damaged"):
        open_packed(root, verify=False)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        open_packed(root)


def test_what_does_not_exist_is_named_with_what_does(pack):
    packed = open_packed(pack(raw()))
    with pytest.raises(UserError, match="toy: no split 'dev'; there are train, validation, test"):
        packed.split("dev")
    with pytest.raises(UserError, match=r"281 images of train asked, there are 280; lower pretrain\.images"):
        packed.subset("train", 281)


def test_a_split_without_a_class_is_refused(pack):
    with pytest.raises(UserError, match="the validation split has no image of class 'c3'; change validation"):
        pack(raw(), {**CONFIG, "validation": 3})


def test_images_and_labels_must_belong_together(pack):
    data = raw()
    broken = Raw(**{**vars(data), "images": data.images[:-1]})
    with pytest.raises(UserError, match="399 images but 400 labels"):
        pack(broken)


@pytest.mark.parametrize(("validation", "left"), [(500, 0), (161, 159)])
def test_more_validation_than_train_is_refused(pack, validation, left):
    with pytest.raises(UserError, match=f"toy: {validation} validation images leave {left} to train on"):
        pack(raw(), {**CONFIG, "validation": validation})


def test_as_much_validation_as_train_is_packed(pack):
    packed = open_packed(pack(raw(), {**CONFIG, "validation": 160}))
    assert len(packed.split("train")) == len(packed.split("validation")) == 160


def test_a_test_size_beside_the_authors_split_is_refused(pack):
    with pytest.raises(UserError, match="test is 8, but the authors give a test split of 80; set test: 0"):
        pack(raw(), {**CONFIG, "test": 8})


def partly_labelled(count: int = 100) -> Raw:
    """The usual data set with unlabelled images in front of, among and behind the labelled ones."""
    data = raw()
    unlabelled = np.random.default_rng(1).permutation(400)[:count]
    labels = data.labels.copy()
    labels[unlabelled] = -1
    test = np.setdiff1d(data.test, unlabelled)
    return Raw(**{**vars(data), "labels": labels, "test": test, "unlabelled": unlabelled})


def test_unlabelled_images_are_a_fourth_split_and_in_no_other(pack):
    data = partly_labelled()
    packed = open_packed(pack(data))
    names = ("train", "validation", "test", "unlabelled")
    assert packed.manifest["splits"] == {name: len(packed.split(name)) for name in names}
    joined = np.concatenate([packed.split(name) for name in names])
    assert sorted(joined.tolist()) == list(range(400))
    assert set(packed.split("unlabelled").tolist()) == set(data.unlabelled.tolist())
    assert set(packed.labels[packed.split("unlabelled")].tolist()) == {-1}
    assert len(packed.split("validation")) == 40
    assert packed.labels[packed.split("train")].min() == 0
    assert len(packed.subset("unlabelled", 30)) == 30


def test_unlabelled_images_are_in_an_order_of_the_seed_alone(pack):
    data = partly_labelled()
    first = open_packed(pack(data, name="a")).split("unlabelled")
    backwards = Raw(**{**vars(data), "unlabelled": np.sort(data.unlabelled)[::-1].copy()})
    np.testing.assert_array_equal(first, open_packed(pack(backwards, name="b")).split("unlabelled"))
    other = open_packed(pack(data, {**CONFIG, "seed": 4}, name="c")).split("unlabelled")
    assert not np.array_equal(first, other)
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.3


def test_statistics_and_the_other_splits_do_not_see_unlabelled_images(pack):
    data = partly_labelled()
    images = data.images.copy()
    images[data.unlabelled] = 255 - images[data.unlabelled]
    one, other = open_packed(pack(data, name="a")), open_packed(pack(Raw(**{**vars(data), "images": images}), name="b"))
    assert (one.mean, one.std) == (other.mean, other.std)
    train = data.images[one.split("train")].astype(np.float64) / 255
    np.testing.assert_allclose(one.mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert all(np.array_equal(one.split(name), other.split(name)) for name in one.splits)


def test_statistics_are_counted_block_by_block(monkeypatch):
    images = np.random.default_rng(0).integers(0, 200, (50, 3, 4, 5)).astype(np.uint8)
    train = np.random.default_rng(1).permutation(50)[:37]
    whole = statistics(images, train)
    monkeypatch.setattr(prepare_module, "STATISTICS_BLOCK", 5)
    for one, other in zip(whole, statistics(images, train), strict=True):
        np.testing.assert_array_equal(one, other)
    scaled = images[train] / 255
    np.testing.assert_allclose(whole[0], scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(whole[1], scaled.std(axis=(0, 2, 3)), rtol=1e-10)


def test_unlabelled_images_do_not_count_as_training_images(pack):
    with pytest.raises(UserError, match="toy: 150 validation images leave"):
        pack(partly_labelled(), {**CONFIG, "validation": 150})


@pytest.mark.parametrize(
    ("position", "label", "match"),
    [
        ("labelled", -1, "split has label -1 where 0 to 3 was expected"),
        ("labelled", 4, "split has label 4 where 0 to 3 was expected"),
        ("unlabelled", 2, "the unlabelled split has label 2 where -1 was expected"),
    ],
)
def test_labels_that_no_class_has_are_refused(pack, position, label, match):
    data = partly_labelled()
    labels = data.labels.copy()
    labels[np.flatnonzero((labels < 0) == (position == "unlabelled"))[0]] = label
    with pytest.raises(UserError, match=match):
        pack(Raw(**{**vars(data), "labels": labels}))


def test_the_error_of_a_disk_that_fills_keeps_its_number(tmp_path):
    """A limit on file sizes stands for the full disk; numpy's own fast path would lose the number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            prepare_module.write_array(tmp_path / "images.npy", np.zeros(3 << 20, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_an_unlabelled_part_may_be_empty(pack):
    packed = open_packed(pack(Raw(**{**vars(raw()), "unlabelled": np.zeros(0, np.int64)})))
    assert packed.manifest["splits"] == {"train": 280, "validation": 40, "test": 80, "unlabelled": 0}

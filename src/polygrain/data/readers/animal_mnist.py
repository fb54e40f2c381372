"""Animal-MNIST 0.4: 10,000 grey images of 28 px, mostly silhouettes, ten animals of 1,000; the transfer set.

The wheel is fetched by pip and read by path, never imported; its pickles are loaded by an unpickler that knows numpy
arrays only. The authors give no split. Of twins (intersection over union of the silhouettes above 0.98, mirrored or
not) the first is kept, none where labels differ. In 0.4 these are 284 byte-equal copies: 9,716 images remain, and no
two of them share more than 0.955.
"""

import gzip
import zipfile
from functools import partial

import numpy as np

from polygrain.data.archives import download_wheel, fetch_wheel, load_pickle
from polygrain.data.raw import Raw
from polygrain.provenance.errors import UserError

WHEEL = "animal_mnist-0.4-py3-none-any.whl"
WHEEL_SHA256 = "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"
_index = partial(download_wheel, "animal-mnist==0.4")
IMAGES = "animal_mnist/data/Animal_MNIST/animal_data_version_3.gz"
LABELS = "animal_mnist/data/Animal_MNIST/animal_label_version_3.gz"
CLASSES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
# superclasses of our own: wild, kept as a pet, farm animal, bird
COARSE = ("wild", "bird", "pet", "farm")
COARSE_OF_CLASS = (0, 1, 2, 3, 2, 0, 0, 3, 3, 0)
TWIN = 0.98


def read() -> Raw:
    """Fetch, verify, decode and remove near-duplicates. Raises UserError that lists the sources when none answers."""
    with zipfile.ZipFile(fetch_wheel("animal-mnist", WHEEL, WHEEL_SHA256, _index)) as wheel:
        images = load_array(IMAGES, wheel.read(IMAGES))
        labels = load_array(LABELS, wheel.read(LABELS)).astype(np.int64)
    kept = without_twins(images.astype(np.uint8), labels)
    return Raw(
        images=images[kept].astype(np.uint8)[:, None],
        labels=labels[kept],
        test=None,
        classes=CLASSES,
        coarse_names=COARSE,
        coarse_of_class=COARSE_OF_CLASS,
        hashes={WHEEL: WHEEL_SHA256},
        licence="MIT",
        source="Animal-MNIST 0.4, 10,000 images, near-duplicates removed",
    )


def load_array(name: str, packed: bytes) -> np.ndarray:
    """Decompress and unpickle one array. Raises UserError when it is anything else."""
    array = load_pickle(name, gzip.decompress(packed))
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name}: holds a {type(array).__name__} where an array was expected")
    return array


def without_twins(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Positions of one image per group of near-duplicates, ascending; groups of mixed labels give none.

    images: uint8 [N, H, W]. Two images are twins when the intersection over union of their silhouettes (grey 128 and
    up) exceeds TWIN, either way round; groups are the connected components of twins.
    """
    group = twin_groups(images >= 128)
    kept = []
    for position in np.flatnonzero(group == np.arange(len(group))):
        if len(set(labels[group == position])) == 1:
            kept.append(position)
    return np.array(kept, dtype=np.int64)


def twin_groups(silhouettes: np.ndarray, block: int = 1000) -> np.ndarray:
    """The smallest position of each image's group, int64 [N]; products of 0/1 rows are exact in float32."""
    flat = silhouettes.reshape(len(silhouettes), -1).astype(np.float32)
    mirrored = silhouettes[:, :, ::-1].reshape(len(silhouettes), -1).astype(np.float32)
    area = flat.sum(axis=1)
    parent = np.arange(len(flat))
    for start in range(0, len(flat), block):
        rows = flat[start : start + block]
        for other in (flat[start:], mirrored[start:]):
            shared = rows @ other.T
            union = area[start : start + block, None] + area[None, start:] - shared
            for i, j in np.argwhere((shared > TWIN * union) & (union > 0)):
                _join(parent, start + i, start + j)
    return np.array([_root(parent, position) for position in range(len(flat))])


def _root(parent: np.ndarray, position: int) -> int:
    while parent[position] != position:
        position = parent[position]
    return int(position)


def _join(parent: np.ndarray, one: int, other: int) -> None:
    one, other = _root(parent, one), _root(parent, other)
    parent[max(one, other)] = min(one, other)

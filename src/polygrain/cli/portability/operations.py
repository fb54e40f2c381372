"""Operations of every library that may choose its code by the processor, each with the hash of its result.

Run as a module: prints first the processor and what the libraries chose, then a line per operation. Inputs come from
integers of a counter, so a difference in one operation is that operation's own.
"""

import hashlib
import io
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from polygrain.cli.portability.processor import processor
from polygrain.nn.random import normal, uniform
from polygrain.provenance.pins import pin_torch
from polygrain.train.guard import exit_with_parent

Operation = tuple[str, Callable[[], Any]]
# rows, inner, columns of products: heads, similarities, probes, odd sizes
_PRODUCTS = ((1, 64, 10), (128, 64, 128), (128, 512, 64), (257, 33, 129), (1000, 784, 64), (37, 1001, 5))
_CONVOLUTIONS = ((1, 16, 28, 3), (16, 32, 14, 3), (64, 64, 7, 1))  # channels in and out, side, kernel


def tensor(*shape: int, seed: int = 0) -> Tensor:
    """Float32 in -3 to 3."""
    words = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(seed * 7_919_317)
    words = (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return torch.from_numpy((words.astype(np.float32) / np.float32(2**24) * 6 - 3).reshape(shape))


def products() -> Iterator[Operation]:
    """Through MKL: products and decompositions."""
    for m, k, n in _PRODUCTS:
        a, b, c = tensor(m, k), tensor(k, n, seed=1), tensor(n, seed=2)
        yield f"mm {m} {k} {n}", lambda a=a, b=b: a @ b
        yield f"linear {m} {k} {n}", lambda a=a, b=b, c=c: F.linear(a, b.T.contiguous(), c)
        yield f"mm {m} {k} {n} double", lambda a=a, b=b: a.double() @ b.double()
    yield "bmm", lambda: torch.bmm(tensor(32, 49, 32), tensor(32, 32, 49, seed=1))
    yield "attention", lambda: F.scaled_dot_product_attention(*(tensor(4, 2, 17, 32, seed=i) for i in range(3)))
    square = tensor(60, 60)
    square = square @ square.T + 60 * torch.eye(60)
    for name in ("eigh", "svd", "qr", "cholesky", "inv"):
        yield name, lambda name=name: getattr(torch.linalg, name)(square)


def functions() -> Iterator[Operation]:
    """Elementary functions, most of them MKL's vector mathematics; without those that polygrain does not call."""
    x = tensor(64, 257)
    for kind in (x, x.double()):
        for name in ("exp", "log1p", "expm1", "sin", "cos", "tanh", "erf", "sigmoid", "rsqrt", "erfinv"):
            usable = kind.abs() / 4 + 0.1 if name in ("log1p", "rsqrt", "erfinv") else kind
            yield f"{name} {kind.dtype}"[:24], lambda name=name, usable=usable: getattr(torch, name)(usable)
    yield "log float32", lambda: torch.log(x.abs() + 0.1)
    yield "pow", lambda: (x.abs() + 0.1) ** 1.7
    yield "gelu", lambda: F.gelu(x)
    yield "uniform, normal of polygrain", lambda: (uniform(torch.arange(999)), normal(torch.arange(999)))


def convolutions() -> Iterator[Operation]:
    """Through oneDNN: forward and both gradients, in both memory layouts."""
    for layout in (torch.contiguous_format, torch.channels_last):
        for channels, width, side, kernel in _CONVOLUTIONS:

            def run(layout: Any = layout, c: int = channels, w: int = width, s: int = side, k: int = kernel) -> Any:
                images = tensor(16, c, s, s).contiguous(memory_format=layout).requires_grad_()
                weight = tensor(w, c, k, k, seed=1).contiguous(memory_format=layout).requires_grad_()
                maps = F.conv2d(images, weight, padding=k // 2)
                maps.square().sum().backward()
                return maps, images.grad, weight.grad

            yield f"conv2d {channels} {width} {kernel} {str(layout)[6:]}", run


def kernels() -> Iterator[Operation]:
    """Kernels of torch itself."""
    x = tensor(64, 257)
    for name in ("softmax", "log_softmax", "logsumexp", "sum", "mean", "var", "std", "cumsum", "sort", "argmax"):
        yield name, lambda name=name: getattr(torch, name)(x, 1)
    yield "stable argsort", lambda: torch.argsort(x.flatten().round(decimals=1), stable=True)
    yield "topk", lambda: x.topk(7, 1)
    yield "normalize", lambda: F.normalize(x)
    yield "batch_norm", lambda: F.batch_norm(x, None, None, training=True)
    yield "layer_norm", lambda: F.layer_norm(x, (257,))
    for mode in ("bilinear", "bicubic"):
        yield mode, lambda mode=mode: F.interpolate(tensor(2, 3, 37, 41), (28, 28), mode=mode, antialias=True)
    yield "cross_entropy", lambda: _gradient(lambda p: F.cross_entropy(p, torch.arange(64) % 10), tensor(64, 10))
    yield "fused AdamW", lambda: _optimised(torch.optim.AdamW)
    yield "fused SGD", lambda: _optimised(torch.optim.SGD, momentum=0.9)


def _gradient(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor | None:
    function(inputs.requires_grad_()).backward()  # type: ignore[no-untyped-call]
    return inputs.grad


def _optimised(optimiser: Any, **options: float) -> Tensor:
    weights = tensor(100, 31).requires_grad_()
    steps = optimiser([weights], lr=0.01, weight_decay=0.1, fused=True, **options)
    for _ in range(3):
        weights.grad = weights.detach() * 3 + 0.1
        steps.step()
    return weights


def arrays() -> Iterator[Operation]:
    """Loops of numpy, and OpenBLAS inside it."""
    x = tensor(101, 257).numpy()
    for kind in (x, x.astype(np.float64)):
        for name in ("exp", "log", "log1p", "sqrt", "sin", "cos", "tanh", "cbrt"):
            usable = np.abs(kind) + kind.dtype.type(0.1)
            yield f"numpy {name} {kind.dtype}", lambda name=name, usable=usable: getattr(np, name)(usable)
        yield f"numpy sum, std {kind.dtype}", lambda kind=kind: (kind.sum(1), kind.std(0), kind.mean())
        yield f"numpy sort {kind.dtype}", lambda kind=kind: np.sort(kind, 1)
        yield f"numpy pow {kind.dtype}", lambda kind=kind: np.abs(kind) ** kind.dtype.type(1.7)
        yield f"OpenBLAS product {kind.dtype}", lambda kind=kind: (kind @ kind.T, kind @ kind[0], kind[0] @ kind[1])
    wide = x.astype(np.float64)
    for name in ("svd", "eigh", "inv", "qr"):
        yield f"OpenBLAS {name}", lambda name=name: getattr(np.linalg, name)(wide @ wide.T + np.eye(101))
    yield (
        "numpy random",
        lambda: [getattr(np.random.default_rng(0), n)(size=999) for n in ("normal", "random", "gumbel")],
    )


def plain() -> Iterator[Operation]:
    """The C library's mathematics, as Python calls it, and zlib."""
    values = [abs(float(value)) + 0.01 for value in tensor(999).numpy()]
    for name in ("exp", "log", "log2", "log1p", "sin", "cos", "tan", "tanh", "atan", "erf", "lgamma"):
        yield f"libm {name}", lambda name=name: np.array([getattr(math, name)(value) for value in values])
    yield "libm pow", lambda: np.array([value**1.7 for value in values])
    data = tensor(9999).numpy().round(1).tobytes()
    yield "zlib", lambda: (zlib.compress(data, 6), zlib.crc32(data).to_bytes(4, "little"))


def pictures() -> Iterator[Operation]:
    """Pillow with libjpeg-turbo, matplotlib, typst."""
    smooth = np.add.outer(np.arange(120), np.arange(90))[..., None] * np.array([1, 2, 3]) % 256
    image = Image.fromarray(smooth.astype(np.uint8))
    jpeg = _saved(image, "JPEG")
    yield "Pillow JPEG encoding", lambda: jpeg
    yield "Pillow JPEG decoding", lambda: Image.open(io.BytesIO(jpeg)).convert("RGB").tobytes()
    yield "Pillow JPEG decoding, draft", lambda: _draft(jpeg)
    yield "Pillow PNG", lambda: _saved(image, "PNG")
    for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        yield f"Pillow {kind.name.lower()}", lambda kind=kind: image.resize((37, 41), kind).tobytes()
    for suffix in ("pdf", "png"):
        yield f"matplotlib {suffix}", lambda suffix=suffix: _figure(suffix)
    yield "typst pdf", _typeset


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def _draft(jpeg: bytes) -> bytes:
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", (60, 45))
    return image.tobytes()


def _figure(suffix: str) -> bytes:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    x = np.linspace(0, 7, 200)
    axes.plot(x, x**1.5)
    axes.fill_between(x, x, x * 1.3, alpha=0.3)
    axes.set_title("Titel $\\sqrt{x}$")
    stream = io.BytesIO()
    figure.savefig(stream, format=suffix, metadata={"pdf": {"CreationDate": None}, "png": {"Software": None}}[suffix])
    return stream.getvalue()


def _typeset() -> bytes:
    import typst

    text = "#set document(date: none)\n#table(columns: 3, ..range(30).map(i => $#i plus.minus 0.1$))\n#lorem(80)"
    return bytes(typst.compile(text.encode(), format="pdf"))


# library: its operations. The emulator's gather instruction (not the processor's) is wrong in Debian 12's version, so
# grid_sample of torch and unstable argsort of numpy, of which polygrain calls neither, cannot be asked.
LIBRARIES: dict[str, Callable[[], Iterator[Operation]]] = {
    "MKL": products,
    "MKL vector mathematics": functions,
    "oneDNN": convolutions,
    "torch": kernels,
    "numpy, OpenBLAS": arrays,
    "libm, zlib": plain,
    "Pillow, matplotlib, typst": pictures,
}


def digest(result: Any) -> str:
    """SHA-256 of a result's bytes, shortened: tensors, arrays, bytes or sequences of them."""
    sha = hashlib.sha256()
    for part in _parts(result):
        sha.update(part)
    return sha.hexdigest()[:16]


def _parts(result: Any) -> Iterator[bytes]:
    if isinstance(result, Sequence) and not isinstance(result, bytes):
        for part in result:
            yield from _parts(part)
    elif isinstance(result, bytes):
        yield result
    else:
        array = result.detach().contiguous().numpy() if isinstance(result, Tensor) else result
        yield np.ascontiguousarray(array).tobytes()


def main() -> None:
    """Print the processor and the choices as one JSON line, then a line per operation, each as soon as it is done."""
    exit_with_parent()
    pin_torch()
    loop = np.lib.introspect.opt_func_info(func_name="^tanh$", signature="float64")["tanh"]["dd"]["current"]
    seen = {**asdict(processor()), "torch": torch.backends.cpu.get_cpu_capability(), "numpy": loop}
    print(json.dumps(seen), flush=True)
    for library, operations in LIBRARIES.items():
        for name, run in operations():
            print(json.dumps([library, name, digest(run())]), flush=True)


if __name__ == "__main__":
    sys.exit(main())

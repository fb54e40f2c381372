"""Operations of every library that may choose its code by the processor, each with the hash of its result.

Run as a module: prints first the processor and what the libraries chose, then a line per operation. Inputs come from
integers of a counter, so a difference in one operation is that operation's own.
"""

import hashlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
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
        yield f"mm {m} {k} {n}", partial(torch.mm, a, b)
        yield f"linear {m} {k} {n}", partial(F.linear, a, b.T.contiguous(), c)
        yield f"mm {m} {k} {n} double", partial(torch.mm, a.double(), b.double())
    yield "bmm", partial(torch.bmm, tensor(32, 49, 32), tensor(32, 32, 49, seed=1))
    query, key, value = (tensor(4, 2, 17, 32, seed=seed) for seed in range(3))
    yield "attention", partial(F.scaled_dot_product_attention, query, key, value)
    square = tensor(60, 60)
    square = square @ square.T + 60 * torch.eye(60)
    for name in ("eigh", "svd", "qr", "cholesky", "inv"):
        yield name, partial(getattr(torch.linalg, name), square)


def functions() -> Iterator[Operation]:
    """Elementary functions, most of them MKL's vector mathematics; without those that polygrain does not call."""
    x = tensor(64, 257)
    small = x.abs() / 4 + 0.1
    for kind in (torch.float32, torch.float64):
        for name in ("exp", "expm1", "sin", "cos", "tanh", "erf", "sigmoid"):
            yield f"{name} {kind}", partial(getattr(torch, name), x.to(kind))
        for name in ("log1p", "rsqrt", "erfinv"):
            yield f"{name} {kind}", partial(getattr(torch, name), small.to(kind))
    yield "log", partial(torch.log, small)
    yield "pow", partial(torch.pow, small, 1.7)
    yield "gelu", partial(F.gelu, x)
    yield "uniform of polygrain", partial(uniform, torch.arange(999))
    yield "normal of polygrain", partial(normal, torch.arange(999))


def convolutions() -> Iterator[Operation]:
    """Through oneDNN: forward and both gradients, in both memory layouts."""
    for layout in (torch.contiguous_format, torch.channels_last):
        for channels, width, side, kernel in _CONVOLUTIONS:
            images = tensor(16, channels, side, side).contiguous(memory_format=layout)
            weight = tensor(width, channels, kernel, kernel, seed=1).contiguous(memory_format=layout)
            yield f"conv2d {channels} {width} {kernel} {str(layout)[6:]}", partial(_convolution, images, weight)


def _convolution(images: Tensor, weight: Tensor) -> list[Tensor]:
    inputs = images.requires_grad_(), weight.requires_grad_()
    maps = F.conv2d(*inputs, padding=weight.shape[-1] // 2)
    return [maps, *torch.autograd.grad(maps.square().sum(), inputs)]


def kernels() -> Iterator[Operation]:
    """Kernels of torch itself."""
    x = tensor(64, 257)
    for name in ("softmax", "log_softmax", "logsumexp", "sum", "mean", "var", "std", "cumsum", "sort", "argmax"):
        yield name, partial(getattr(torch, name), x, 1)
    yield "stable argsort", partial(torch.argsort, x.flatten().round(decimals=1), stable=True)
    yield "topk", partial(torch.topk, x, 7, 1)
    yield "normalize", partial(F.normalize, x)
    yield "batch_norm", partial(F.batch_norm, x, None, None, training=True)
    yield "layer_norm", partial(F.layer_norm, x, (257,))
    for mode in ("bilinear", "bicubic"):
        yield mode, partial(F.interpolate, tensor(2, 3, 37, 41), (28, 28), mode=mode, antialias=True)
    yield "cross_entropy", partial(_cross_entropy, tensor(64, 10))
    yield "fused AdamW", partial(_optimised, torch.optim.AdamW)
    yield "fused SGD", partial(_optimised, torch.optim.SGD, momentum=0.9)


def _cross_entropy(logits: Tensor) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(logits.requires_grad_(), torch.arange(len(logits)) % logits.shape[1])
    return loss, *torch.autograd.grad(loss, logits)


def _optimised(optimiser: Any, **options: float) -> Tensor:
    weights = tensor(100, 31).requires_grad_()
    steps = optimiser([weights], lr=0.01, weight_decay=0.1, fused=True, **options)
    for _ in range(3):
        weights.grad = weights.detach() * 3 + 0.1
        steps.step()
    return weights


def arrays() -> Iterator[Operation]:
    """Loops of numpy, and OpenBLAS inside it."""
    for kind in (np.float32, np.float64):
        x = tensor(101, 257).numpy().astype(kind)
        positive = np.abs(x) + kind(0.1)
        for name in ("exp", "log", "log1p", "sqrt", "sin", "cos", "tanh", "cbrt"):
            yield f"numpy {name} {x.dtype}", partial(getattr(np, name), positive)
        yield f"numpy pow {x.dtype}", partial(np.power, positive, kind(1.7))
        for name in ("sum", "std", "sort"):
            yield f"numpy {name} {x.dtype}", partial(getattr(np, name), x, axis=1)
        yield f"OpenBLAS product {x.dtype}", partial(np.matmul, x, x.T)
        yield f"OpenBLAS product with a vector {x.dtype}", partial(np.matmul, x, x[0])
    square = np.matmul(x, x.T) + np.eye(101)
    for name in ("svd", "eigh", "inv", "qr"):
        yield f"OpenBLAS {name}", partial(getattr(np.linalg, name), square)
    for name in ("normal", "random", "gumbel"):
        yield f"numpy random {name}", partial(getattr(np.random.default_rng(0), name), size=999)


def plain() -> Iterator[Operation]:
    """The C library's mathematics, as Python calls it, and zlib."""
    values = [abs(float(value)) + 0.01 for value in tensor(999).numpy()]
    for name in ("exp", "log", "log2", "log1p", "sin", "cos", "tan", "tanh", "atan", "erf", "lgamma"):
        yield f"libm {name}", partial(_mapped, getattr(math, name), values)
    yield "libm pow", partial(_mapped, partial(math.pow, 1.7), values)
    yield "zlib", partial(zlib.compress, tensor(9999).numpy().round(1).tobytes(), 6)


def _mapped(function: Callable[[float], float], values: Sequence[float]) -> "np.ndarray[Any, Any]":
    return np.array([function(value) for value in values])


def pictures() -> Iterator[Operation]:
    """Pillow with libjpeg-turbo, matplotlib, typst."""
    smooth = np.add.outer(np.arange(120), np.arange(90))[..., None] * np.array([1, 2, 3]) % 256
    image = Image.fromarray(smooth.astype(np.uint8))
    jpeg = _saved(image, "JPEG")
    yield "Pillow JPEG encoding", partial(_saved, image, "JPEG")
    yield "Pillow JPEG decoding", partial(_decoded, jpeg)
    yield "Pillow JPEG decoding at half the size", partial(_decoded, jpeg, size=(45, 60))
    yield "Pillow PNG", partial(_saved, image, "PNG")
    for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        yield f"Pillow {kind.name.lower()}", partial(_resized, image, kind)
    for suffix in ("pdf", "png"):
        yield f"matplotlib {suffix}", partial(_figure, suffix)
    yield "typst pdf", _typeset


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def _decoded(jpeg: bytes, size: tuple[int, int] | None = None) -> bytes:
    image = Image.open(io.BytesIO(jpeg))
    if size:
        image.draft("RGB", size)
    return image.convert("RGB").tobytes()


def _resized(image: Image.Image, kind: Image.Resampling) -> bytes:
    return image.resize((37, 41), kind).tobytes()


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
    main()

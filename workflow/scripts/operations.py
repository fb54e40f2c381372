"""Operations of every library that may choose its code by the processor, each with the hash of its result.

python workflow/scripts/operations.py    prints what the libraries chose, then a line of JSON per operation

An operation is its own expression. Inputs come from integers of a counter, so a difference in one is that operation's
own. The emulator's gather instruction (not the processor's) is wrong in Debian 12's version, so grid_sample of torch
and unstable argsort of numpy, of which polygrain calls neither, cannot be asked.
"""

import hashlib
import io
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from polygrain.nn.linear import linear_map
from polygrain.nn.random import normal, uniform
from polygrain.provenance.pins import pin_torch
from polygrain.train.guard import exit_with_parent


def t(*shape: int, seed: int = 0) -> Tensor:
    """Float32 in -3 to 3."""
    words = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(seed * 7_919_317)
    words = (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return torch.from_numpy((words.astype(np.float32) / np.float32(2**24) * 6 - 3).reshape(shape))


def graded(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """A result and the gradients of its squares' sum."""
    result = function(*(tensor.requires_grad_() for tensor in inputs))
    return [result, *torch.autograd.grad(result.square().sum(), inputs)]


def optimised(kind: Callable[..., Any], **options: float) -> Tensor:
    """Weights after three steps of a fused optimiser."""
    weights = t(100, 31).requires_grad_()
    steps = kind([weights], lr=0.01, weight_decay=0.1, fused=True, **options)
    for _ in range(3):
        weights.grad = weights.detach() * 3 + 0.1
        steps.step()
    return weights


def saved(image: Image.Image, kind: str) -> bytes:
    """A picture as a file."""
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def decoded(jpeg: bytes, *size: int) -> bytes:
    """The pixels of a JPEG, decoded at about that size."""
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", (size[0], size[1]))
    return image.convert("RGB").tobytes()


def figure(kind: str) -> bytes:
    """Lines, an area and a formula by matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots()
    x, stream = np.linspace(0, 7, 200), io.BytesIO()
    axes.plot(x, x**1.5)
    axes.fill_between(x, x, x * 1.3, alpha=0.3)
    axes.set_title("Titel $\\sqrt{x}$")
    canvas.savefig(stream, format=kind, metadata={"pdf": {"CreationDate": None}, "png": {"Software": None}}[kind])
    return stream.getvalue()


def typeset() -> bytes:
    """A table and text by typst."""
    import typst

    text = "#set document(date: none)\n#table(columns: 3, ..range(30).map(i => $#i plus.minus 0.1$))\n#lorem(80)"
    return bytes(typst.compile(text.encode(), format="pdf"))


def expressions() -> Mapping[str, list[str]]:
    """The operations by library, as expressions of the names in this module."""
    # rows, inner, columns of products: heads, similarities, probes, odd sizes; then channels in and out, side, kernel
    products = ((1, 64, 10), (128, 64, 128), (128, 512, 64), (257, 33, 129), (1000, 784, 64), (37, 1001, 5))
    convolutions = ((1, 16, 28, 3), (16, 32, 14, 3), (64, 64, 7, 1))
    mkl, onednn, numpy = list[str](), list[str](), list[str]()
    for m, k, n in products:
        a, b = f"t({m}, {k})", f"t({k}, {n}, seed=1)"
        mkl += [f"{a} @ {b}", f"F.linear({a}, {b}.T.contiguous(), t({n}, seed=2))", f"{a}.double() @ {b}.double()"]
    mkl += ["torch.bmm(t(32, 49, 32), t(32, 32, 49, seed=1))"]
    mkl += ["F.scaled_dot_product_attention(*(t(4, 2, 17, 32, seed=seed) for seed in range(3)))"]
    square = "t(60, 60) @ t(60, 60).T + 60 * torch.eye(60)"
    mkl += [f"torch.linalg.{name}({square})" for name in ("eigh", "svd", "qr", "cholesky", "inv")]
    x, small = "t(64, 257)", "t(64, 257).abs() / 4 + 0.1"
    functions = [f"torch.log({small})", f"torch.pow({small}, 1.7)", f"F.gelu({x})"]
    functions += [f"{name}(torch.arange(999))" for name in ("uniform", "normal")]
    for kind in ("float", "double"):  # without those that polygrain does not call
        names = ["exp", "expm1", "sin", "cos", "tanh", "erf", "sigmoid"]
        functions += [f"torch.{name}({x}.{kind}())" for name in names]
        functions += [f"torch.{name}(({small}).{kind}())" for name in ("log1p", "rsqrt", "erfinv")]
    for layout in ("contiguous_format", "channels_last"):
        for c, d, s, k in convolutions:
            images, weight = f"t(16, {c}, {s}, {s})", f"t({d}, {c}, {k}, {k}, seed=1)"
            inputs = ", ".join(f"{each}.contiguous(memory_format=torch.{layout})" for each in (images, weight))
            onednn.append(f"graded(lambda x, w: F.conv2d(x, w, padding={k // 2}), {inputs})")
    for n, d, o in ((1536, 128, 256), (768, 256, 2048), (256, 300, 10), (64, 128, 100)):  # maps of 4 x 4, then of 2 x 2
        rows, weight, bias = f"t({n}, {d})", f"t({o}, {d}, seed=1)", f"t({o}, seed=2)"
        onednn += [f"graded(linear_map, {rows}, {weight}, {bias})", f"graded(linear_map, {rows}, {weight})"]
    names = ["softmax", "log_softmax", "logsumexp", "sum", "mean", "var", "std", "cumsum", "sort", "argmax"]
    kernels = [f"torch.{name}({x}, 1)" for name in names]
    kernels += [f"torch.argsort({x}.flatten().round(decimals=1), stable=True)", f"torch.topk({x}, 7, 1)"]
    kernels += [f"F.normalize({x})", f"F.batch_norm({x}, None, None, training=True)", f"F.layer_norm({x}, (257,))"]
    resized = "F.interpolate(t(2, 3, 37, 41), (28, 28), mode={!r}, antialias=True)"
    kernels += [resized.format(mode) for mode in ("bilinear", "bicubic")]
    kernels += ["graded(lambda x: F.cross_entropy(x, torch.arange(64) % 10), t(64, 10))"]
    kernels += ["optimised(torch.optim.AdamW)", "optimised(torch.optim.SGD, momentum=0.9)"]
    for kind in ("float32", "float64"):
        x = f"t(101, 257).numpy().astype(np.{kind})"
        names = ["exp", "log", "log1p", "sqrt", "sin", "cos", "tanh", "cbrt"]
        numpy += [f"np.{name}(np.abs({x}) + np.{kind}(0.1))" for name in names]
        numpy += [f"np.power(np.abs({x}) + np.{kind}(0.1), np.{kind}(1.7))"]
        numpy += [f"np.{name}({x}, 1)" for name in ("sum", "std", "sort")] + [f"{x} @ {x}.T", f"{x} @ {x}[0]"]
    numpy += [f"np.linalg.{name}({x} @ {x}.T + np.eye(101))" for name in ("svd", "eigh", "inv", "qr")]
    numpy += [f"np.random.default_rng(0).{name}(size=999)" for name in ("normal", "random", "gumbel")]
    names = ["exp", "log", "log2", "log1p", "sin", "cos", "tan", "tanh", "atan", "erf", "lgamma"]
    plain = [f"np.array([math.{name}(x) for x in values])" for name in names]
    plain += ["np.array([math.pow(1.7, x) for x in values])"]
    plain += ["zlib.compress(t(9999).numpy().round(1).tobytes(), 6)"]
    pictures = ["saved(picture, 'JPEG')", "saved(picture, 'PNG')"]
    pictures += [f"decoded(saved(picture, 'JPEG'), {size})" for size in ("90, 120", "45, 60")]
    sampled = "picture.resize((37, 41), Image.Resampling.{}).tobytes()"
    pictures += [sampled.format(name) for name in ("BILINEAR", "BICUBIC", "LANCZOS")]
    pictures += ["figure('pdf')", "figure('png')", "typeset()"]
    torch_s = {"MKL": mkl, "MKL vector mathematics": functions, "oneDNN": onednn, "torch": kernels}
    return torch_s | {"numpy, OpenBLAS": numpy, "libm, zlib": plain, "Pillow, matplotlib, typst": pictures}


def digest(result: Any) -> str:
    """SHA-256 of a result's bytes, shortened: a tensor, an array, bytes, or a sequence of them."""
    sha = hashlib.sha256()
    for part in result if isinstance(result, Sequence) and not isinstance(result, bytes) else [result]:
        array = part.detach() if isinstance(part, Tensor) else part
        sha.update(part if isinstance(part, bytes) else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


if __name__ == "__main__":
    exit_with_parent()
    pin_torch()
    loop = np.lib.introspect.opt_func_info(func_name="^tanh$", signature="float64")["tanh"]["dd"]["current"]
    print(json.dumps({"torch": torch.backends.cpu.get_cpu_capability(), "numpy": loop}), flush=True)
    smooth = np.add.outer(np.arange(120), np.arange(90))[..., None] * np.array([1, 2, 3]) % 256
    picture = Image.fromarray(smooth.astype(np.uint8))
    values = [abs(float(value)) + 0.01 for value in t(999).numpy()]
    scope = {**globals(), "F": F, "uniform": uniform, "normal": normal, "linear_map": linear_map, "zlib": zlib}
    for library, operations in expressions().items():
        for operation in operations:
            began, found = time.perf_counter(), digest(eval(operation, scope))
            print(json.dumps([library, operation, found, time.perf_counter() - began]), flush=True)

"""Whose time a training step is: that of views, encoder, heads with loss products, optimiser, or of the rest.

The loop and the methods book their own phases (`nn.phases`). What tells the encoder from the heads is put around every
copy of the backbone while `metered` lasts, and taken off again:

* forward: a call of a backbone is the encoder's; what remains of the loop's phase `forward` is the heads'.
* backward: autograd executes the nodes that are ready in the reverse order of their creation, so all nodes of one call
  of the backbone run in one stretch. A hook on the outputs of a call ends the stretch of the heads before it; a hook on
  every node of the call behind which there are only parameters or inputs ends the encoder's. The rest of the loop's
  phase `backward` is the heads'. Left with the heads, too small to matter: setting old gradients to None, and adding up
  the gradients of parameters that several calls share.

Finding those nodes takes time of its own, which is booked apart and belongs to no step.

Work that does not fall on every step is measured over many: see `Meter`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from polygrain.backbones.contract import Backbone, Encoded
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.phases import Stopwatch, phase
from polygrain.nn.queue import Queue

CALLS = ("forward", "trunk", "finish", "encode_jointly", "encode_crops")
MEASURING = "measuring"
# shared parts that do a method's work without gradient, under the names that they have in the report
COMPONENTS = ((ema, "update", "EMA"), (ema, "copy_parameters", "EMA"), (Queue, "push", "queues"))


@dataclass
class Book:
    """Seconds per phase, and encoder passes: full-size views forward, those with gradient three times."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    passes: float = 0.0


class Meter(Stopwatch):
    """A stopwatch that also counts encoder passes of views of `side` px.

    It keeps three books: `steps`, what every step does; `hooks`, the hooks start_epoch and before_step, which may work
    in a few steps only; `once`, start_epoch of step 0.
    """

    def __init__(self, device: torch.device, side: int) -> None:
        super().__init__(device)
        self.side = side
        self.inside = False
        self.once = Book()
        self.restart()

    def restart(self) -> None:
        """Forget the steps, not what was done once."""
        self.steps, self.hooks = Book(), Book()
        self._open(self.steps)

    @contextmanager
    def into(self, book: Book, name: str) -> Iterator[None]:
        """Book the body under `name` in another book."""
        before = self.book
        with self.phase(name):
            self._open(book)
            yield
        self._open(before)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As the parent's; a bare `rest` takes the name of the component of the rest that it is in."""
        if name == "rest":
            outer = self._names[-1] if self._names else ""
            name = outer if outer.startswith("rest") else "rest: in forward"
        with super().phase(name):
            yield

    def claim(self, name: str) -> None:
        """Book what passed since the last event under `name`, whatever phase is running."""
        self._names.append(name)
        self._book()
        self._names.pop()

    def _open(self, book: Book) -> None:
        self.book, self.seconds = book, book.seconds


@contextmanager
def metered(method: nn.Module, meter: Meter) -> Iterator[None]:
    """Watch a method's backbones, its hooks and the shared parts that work for it."""
    changed: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
        changed.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, function)

    for module in method.modules():
        if isinstance(module, Backbone):
            for name in CALLS:
                put(module, name, _watched(getattr(module, name), meter, encodes=name != "finish"))
    for name in ("start_epoch", "before_step", "after_clip", "after_step"):
        if hasattr(method, name):
            put(method, name, _booked(getattr(method, name), meter, name))
    for owner, name, component in COMPONENTS:
        put(owner, name, phase(f"rest: {component}")(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, own in changed:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _booked(hook: Callable[..., None], meter: Meter, name: str) -> Callable[..., None]:
    """A hook whose time bears its name; the two that may rest between steps have a book of their own."""

    def run(*arguments: Any) -> None:
        clock = arguments[0] if arguments and isinstance(arguments[0], Clock) else None
        book = meter.book
        if name == "start_epoch" and clock is not None and clock.step == 0:
            book = meter.once
        elif name in ("start_epoch", "before_step"):
            book = meter.hooks
        with meter.into(book, f"rest: {name}"):
            hook(*arguments)

    return run


def _watched(call: Callable[..., Any], meter: Meter, *, encodes: bool) -> Callable[..., Any]:
    def run(inputs: Any, *others: Any, **options: Any) -> Any:
        if meter.inside:
            return call(inputs, *others, **options)
        meter.inside = True
        try:
            with meter.phase("encoder"):
                outputs = call(inputs, *others, **options)
        finally:
            meter.inside = False
        with meter.phase(MEASURING):
            graded = [tensor for tensor in _tensors(outputs) if tensor.requires_grad]
            if encodes:
                views = sum(len(x) * (x.shape[-1] / meter.side) ** 2 for x in _tensors(inputs))
                meter.book.passes += views * (3 if graded else 1)
            _hook(graded, {x.grad_fn for x in _tensors(inputs)}, meter)
        return outputs

    return run


def _hook(outputs: list[Tensor], before: set[Node | None], meter: Meter) -> None:
    """Let the backward pass say when it enters, and when it leaves, the nodes between `before` and the outputs."""
    arrived = False

    def arrive(_: Tensor) -> None:
        nonlocal arrived
        if not arrived:  # where several outputs have gradients, all heads have run when the first one is there
            meter.claim("backward")
        arrived = True

    def leave(*_: Any) -> None:
        meter.claim("encoder")

    for tensor in outputs:
        tensor.register_hook(arrive)  # type: ignore[no-untyped-call]
    ahead = [node for tensor in outputs if (node := tensor.grad_fn) is not None and node not in before]
    seen = set(ahead)
    while ahead:
        node = ahead.pop()
        following = {child for child, _ in node.next_functions if child is not None and child not in before}
        following = {child for child in following if not hasattr(child, "variable")}  # gradients of parameters
        if not following:
            node.register_hook(leave)
        ahead += following - seen
        seen |= following


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a tensor, of an encoded batch, or of a sequence of either."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Encoded):
        return [value.pooled, value.map, value.tokens]
    return [tensor for part in value for tensor in _tensors(part)]

"""Whose time a training step is: that of views, encoder, heads with loss products, optimiser, or overhead.

The loop and the methods book their own phases (`polygrain.nn.phases`). Three things are added while `metered` lasts:
calls of every copy of the backbone are a phase `encoder`; the hooks of a method and the shared parts that work for it
have names; `torch.utils.flop_counter` counts the encoder's passes. `torch.profiler` divides the backward pass.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from polygrain.backbones.contract import Backbone
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.phases import Stopwatch, phase
from polygrain.nn.queue import Queue
from polygrain.train.run import Training
from polygrain.train.state import Identity

CALLS = ("forward", "trunk", "finish", "encode_jointly", "encode_crops")
HOOKS = ("start_epoch", "before_step", "after_clip", "after_step")
# shared parts that do a method's work without gradient, under the names that they have in the report
COMPONENTS = ((ema, "update", "EMA"), (ema, "copy_parameters", "EMA"), (Queue, "push", "queues"))


class Meter(Stopwatch):
    """A stopwatch whose phases are BOOK|NAME, and a counter of full-size views by book: 1 forward, 3 with gradient.

    Books are `steps`: what every step does; `hooks`: start_epoch and before_step, which may work in a few steps only;
    `once`: start_epoch of step 0. Counting slows the calls down; steps are counted while `counting`.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.book, self.counting, self.inside, self.view_flops = "steps", True, False, 0.0
        self.passes: dict[str, float] = defaultdict(float)

    def of(self, book: str) -> dict[str, float]:
        """Seconds by phase of one book."""
        return {key[len(book) + 1 :]: value for key, value in self.seconds.items() if key.startswith(f"{book}|")}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As the parent's; a bare `rest` takes the name of the component of the rest that it is in."""
        if name == "rest":
            outer = self._names[-1].partition("|")[2] if self._names else ""
            name = outer if outer.startswith("rest") else "rest: in forward"
        with super().phase(f"{self.book}|{name}"), record_function(name):
            yield


def training(config: Any, data: Path) -> Training:
    """A run at its first step that keeps no state."""
    return Training(config, data, data / "no-state", Identity("", "", "", ""), resume=False)


def backward_share(take_step: Callable[[], None], steps: int) -> float:
    """The encoder's part of the backward pass.

    Each node of the backward pass carries the number of the operation that made it in the forward pass; it is the
    encoder's if that one ran inside a phase `encoder`. Nodes that add up gradients have no number: they belong to the
    node before them.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            take_step()
    events = sorted(profiled.events(), key=lambda event: event.time_range.start)
    spans = [(event.time_range.start, event.time_range.end) for event in events if event.name == "encoder"]
    made: dict[int, bool] = {}
    owner, seconds = False, {True: 0.0, False: 0.0}
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function"):
            owner = made.get(event.sequence_nr, False) if event.sequence_nr >= 0 else owner
            seconds[owner] += event.time_range.elapsed_us()
        elif event.scope == 0 and event.fwd_thread == 0:
            place = bisect(spans, (event.time_range.start, float("inf"))) - 1
            made[event.sequence_nr] = place >= 0 and event.time_range.start < spans[place][1]
    return seconds[True] / sum(seconds.values())


@contextmanager
def metered(method: nn.Module, images: Tensor, meter: Meter) -> Iterator[None]:
    """Watch a method's backbones, its hooks and the shared parts that work for it; `images` are full-size views."""
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deepcopy(backbones[0]).eval()(images)
    meter.view_flops = counter.get_total_flops() / len(images)
    with ExitStack() as stack:
        for module, name in ((module, name) for module in backbones for name in CALLS):
            stack.enter_context(patch.object(module, name, _watched(module, getattr(module, name), meter)))
        for name in (name for name in HOOKS if hasattr(method, name)):
            stack.enter_context(patch.object(method, name, _booked(getattr(method, name), meter, name)))
        for owner, name, component in COMPONENTS:
            stack.enter_context(patch.object(owner, name, phase(f"rest: {component}")(getattr(owner, name))))
        yield


def _booked(hook: Callable[..., None], meter: Meter, name: str) -> Callable[..., None]:
    """A hook whose time bears its name; the two that may rest between steps have books of their own."""

    def run(*arguments: Any) -> None:
        book = "hooks" if name in HOOKS[:2] else meter.book
        if name == "start_epoch" and isinstance(arguments[0], Clock) and arguments[0].step == 0:
            book = "once"
        before, meter.book = meter.book, book
        with meter.phase(f"rest: {name}"):
            hook(*arguments)
        meter.book = before

    return run


def _watched(module: nn.Module, call: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if meter.inside:
            return call(*inputs, **options)
        meter.inside, counting = True, meter.counting or meter.book != "steps"
        try:
            with meter.phase("encoder"), FlopCounterMode(display=False) if counting else ExitStack() as counter:
                outputs = call(*inputs, **options)
        finally:
            meter.inside = False
        if isinstance(counter, FlopCounterMode):
            graded = torch.is_grad_enabled() and any(weight.requires_grad for weight in module.parameters())
            meter.passes[meter.book] += counter.get_total_flops() / meter.view_flops * (3 if graded else 1)
        return outputs

    return run

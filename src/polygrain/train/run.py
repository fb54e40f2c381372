"""Pre-training: one loop, in the order in which things happen, the same for all methods."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from polygrain.backbones.droppath import set_drop_path_key
from polygrain.backbones.load import load_backbone
from polygrain.methods.load import load_method
from polygrain.nn.clip import clip_each, clip_global
from polygrain.nn.clock import Clock
from polygrain.nn.optim import build as build_optimizer
from polygrain.nn.optim import set_learning_rate, set_weight_decay
from polygrain.nn.phases import Stopwatch
from polygrain.nn.schedules import cosine, learning_rate
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import json_line, sha256_file, write_text
from polygrain.train.checkpoint import save_checkpoint
from polygrain.train.data import PretrainingData
from polygrain.train.guard import locked
from polygrain.train.state import Identity, State, load_state, save_state

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import LaterClip, Pretrain
    from polygrain.provenance.stage import Stage

NEVER: "LaterClip" = {"epoch": sys.maxsize, "maximum": math.inf}


def run(stage: "Stage", *, resume: bool = False) -> None:
    """Do the pretrain stage. Raises UserError as `pretrain` does."""
    identity = Identity(
        config=sha256_file(stage.config_path),
        code=sha256_file(stage.code_path),
        environment=sha256_file(stage.environment_path),
        data=sha256_file(stage.manifests[0]),
    )
    data = stage.manifests[0].parent
    config = cast("Pretrain", stage.config)
    pretrain(config, data=data, run=stage.directory, timing=stage.timing, identity=identity, resume=resume)


def pretrain(
    config: "Pretrain", *, data: Path, run: Path, timing: Path, identity: Identity, resume: bool = False
) -> None:
    """Train the run that `config` describes and write `checkpoint.safetensors` and `metrics.jsonl` into `run`.

    A half-done run in `run/scratch` of the same inputs is continued bit for bit. The seconds per phase are written to
    `timing`. Raises UserError on a non-finite loss, on bad data and when another process works on `run`.
    """
    with locked(run / "scratch"):
        Training(config, data, run / "scratch" / "state.pt", identity, resume).finish(run, timing)


class Training:
    """The state of a run and its steps."""

    def __init__(self, config: "Pretrain", data: Path, state: Path, identity: Identity, resume: bool) -> None:
        self.config = config
        self.device = torch.device(config["pretrain"]["device"])
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("pretrain.device is cuda but no CUDA device is visible; use a cpu scale or a GPU machine")
        self.data = PretrainingData(data, config)
        torch.manual_seed(config["seed"])
        backbone = load_backbone(**config["backbone"], channels=self.data.channels)
        # Any, as hooks are optional
        self.method: Any = load_method(config["method"]["name"], backbone, config["method"]["values"])
        self.method.to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = self._optimizer()
        self.state_path, self.identity = state, identity
        self.step, self.metrics = 0, list[str]()
        self.watch = Stopwatch(self.device)
        self._restore(resume)

    def finish(self, run: Path, timing: Path) -> None:
        """Take every remaining step and publish the results."""
        start = self.step
        with self._progress() as bar:
            if self.config["steps"] == 0:
                self._hook("start_epoch", self.clock, self.data)
            while self.step < self.config["steps"]:
                self.take_step()
                bar.update(self.data.batch_size)
                if self.step % self.config["pretrain"]["state_every"] == 0:
                    save_state(self.state_path, self.state())
            seconds = bar.format_dict["elapsed"]
        self._publish(run)
        images = (self.step - start) * self.data.batch_size
        write_text(timing, json_line({"images": images, "seconds": seconds, "phases": dict(self.watch.seconds)}))

    @property
    def clock(self) -> Clock:
        """The current position of the run."""
        return Clock(self.config["seed"], self.step, self.config["steps"], self.data.steps_per_epoch)

    def take_step(self) -> None:
        """One optimiser step: views, losses, gradients, update."""
        clock, optimizer = self.clock, self.optimizer
        assert optimizer is not None, "a run of 0 steps takes none"
        with self.watch.phase("rest"):
            if clock.step_in_epoch == 0:
                self._hook("start_epoch", clock, self.data)
            self._hook("before_step", clock)
            set_drop_path_key(self.method, clock.seed, clock.step, self.data.batch_size)
        with self.watch.phase("views"):
            batch = self.data.batch(clock, self.method.views(clock), ahead=self.method.views)
        with self.watch.phase("forward"):
            losses, monitors = self.method(batch, clock)
            loss = torch.stack(list(losses.values())).sum()
        self._refuse_non_finite(losses)
        with self.watch.phase("backward"):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        with self.watch.phase("optimiser"):
            rate = self._set_rate(optimizer, clock)
            norm = self._clip()
            self._hook("after_clip")
            optimizer.step()
        with self.watch.phase("rest"):
            self._hook("after_step", clock)
        if clock.step % self.config["pretrain"]["log_every"] == 0 or clock.step == clock.steps - 1:
            self._log(clock, {"loss": loss, **losses, **monitors}, rate, norm)
        self.step += 1

    def state(self) -> State:
        """What a later process needs to continue from here."""
        optimizer = self.optimizer.state_dict() if self.optimizer else None
        return State(self.identity, self.step, self.method.state_dict(), optimizer, self.metrics)

    def _restore(self, resume: bool) -> None:
        state = load_state(self.state_path, self.identity, refuse=resume)
        if state is None:
            return
        self.step, self.metrics = state.step, list(state.metrics)
        self.method.load_state_dict(state.method)
        if self.optimizer and state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)
        print(f"continuing the half-done run at step {self.step} of {self.config['steps']}", flush=True)

    def _optimizer(self) -> torch.optim.Optimizer | None:
        if self.config["steps"] == 0:
            return None
        chosen = self.config["optimizer"]
        return build_optimizer(chosen["name"], self.method.parameter_groups(), **chosen["values"])

    def _set_rate(self, optimizer: torch.optim.Optimizer, clock: Clock) -> float:
        """Set this step's learning rate and weight decay and return the rate; warm-up is a share of the run."""
        schedule, final = self.config["optimizer"]["schedule"], self.config["optimizer"]["final_weight_decay"]
        if final is not None:
            start = self.config["optimizer"]["values"]["weight_decay"]
            set_weight_decay(optimizer, cosine(start, final, clock.step, clock.steps))
        parts = schedule.get("parts", 1)
        rate = learning_rate(
            schedule["name"],
            base=schedule["base"],
            final=schedule["final"],
            start=schedule["start"],
            warmup=round(schedule["warmup"] * clock.steps * parts),
            step=(clock.step + 1) * parts - 1,
            steps=clock.steps * parts,
        )
        set_learning_rate(optimizer, base=schedule["base"], scheduled=rate)
        return rate

    def _clip(self) -> Tensor:
        """Clip the gradients as configured; return their joint norm before."""
        chosen = self.config["optimizer"]["clip"]
        later = chosen.get("later") or NEVER
        rule, maximum = chosen["rule"], (chosen["maximum"], later["maximum"])[self.clock.epoch >= later["epoch"]]
        clip = clip_each if rule == "each" else clip_global
        return clip(self.method.parameters(), math.inf if maximum is None else maximum)

    def _hook(self, name: str, *arguments: Any) -> None:
        hook: Callable[..., None] | None = getattr(self.method, name, None)
        if hook is not None:
            hook(*arguments)

    def _refuse_non_finite(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            if not math.isfinite(value.item()):
                raise UserError(
                    f"loss '{name}' is {value.item()} at step {self.step} of {self.config['steps']};"
                    " nothing was published. Lower optimizer.schedule.base, or clip the gradient"
                )

    def _log(self, clock: Clock, values: dict[str, Tensor], rate: float, norm: Tensor) -> None:
        numbers = {name: value.item() for name, value in values.items()}
        self.metrics.append(
            json_line(
                {
                    "epoch": clock.epoch,
                    "gradient_norm": float(norm),
                    "learning_rate": rate,
                    "step": clock.step,
                    **numbers,
                }
            )
        )

    def _publish(self, run: Path) -> None:
        encoder = self.method.encoder_name
        assert isinstance(encoder, str)
        backbone = json.dumps(self.config["backbone"], sort_keys=True)
        save_checkpoint(run / "checkpoint.safetensors", self.method, encoder=encoder, backbone=backbone)
        write_text(run / "metrics.jsonl", "".join(self.metrics))
        self.state_path.unlink(missing_ok=True)

    def _progress(self) -> "tqdm[Any]":
        """Images per second, elapsed and remaining time; one line per half minute if not in a terminal."""
        batch = self.data.batch_size
        return tqdm(
            desc=self.config["method"]["name"],
            total=self.config["steps"] * batch,
            initial=self.step * batch,
            unit="img",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

"""The half-done run: what a killed job needs to continue bit for bit, kept in the run's scratch folder.

It has no generator state, as every draw is a function of counters, and names the hashes of its inputs.
"""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import write_bytes


@dataclass(frozen=True)
class Identity:
    """SHA-256 of the four inputs that decide a run's bits."""

    config: str
    code: str
    environment: str
    data: str

    def differences(self, other: "Identity") -> list[str]:
        """Names of the inputs that differ."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True)
class State:
    """A run after `step` optimiser steps."""

    identity: Identity
    step: int
    method: dict[str, Any]
    optimizer: dict[str, Any] | None
    metrics: list[str]


def save_state(path: Path, state: State) -> None:
    """Write the state atomically: if the process is killed, the previous one stays."""
    buffer = io.BytesIO()
    torch.save({**vars(state), "identity": asdict(state.identity)}, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, identity: Identity, *, refuse: bool) -> State | None:
    """The state at `path` if it was made from the same inputs, None when there is none.

    If inputs differ or the file is damaged, print one line that says so and delete it; with `refuse`, raise UserError.
    """
    if not path.is_file():
        if refuse:
            raise UserError(f"{path}: nothing to resume from; run without --resume to start from the beginning")
        return None
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        state = State(**{**raw, "identity": Identity(**raw["identity"])})
        different = state.identity.differences(identity)
    except Exception:  # torch raises many kinds on a damaged file
        state, different = None, ["the file itself, which is damaged"]
    if not different:
        return state
    if refuse:
        raise UserError(
            f"{path}: cannot resume, this half-done run differs in {', '.join(different)};"
            " run without --resume to start over"
        )
    print(f"starting over: the half-done run in {path.parent} differs in {', '.join(different)}", flush=True)
    path.unlink()
    return None

"""A run is a path: `runs/{scale}/{dataset}/{method}/{variant}/seed{seed}`."""

import re
from dataclasses import dataclass
from pathlib import Path

from polygrain.provenance.errors import UserError

SEGMENT = r"[a-z0-9][a-z0-9.-]*"
_RUN = re.compile(
    rf"runs/(?P<scale>{SEGMENT})/(?P<dataset>{SEGMENT})/(?P<method>{SEGMENT})/(?P<variant>{SEGMENT})/seed(?P<seed>\d+)"
)


@dataclass(frozen=True, order=True)
class Run:
    """The coordinates of one training run."""

    scale: str
    dataset: str
    method: str
    variant: str
    seed: int

    @property
    def path(self) -> Path:
        """The run's directory, relative to the project root."""
        return Path("runs", self.scale, self.dataset, self.method, self.variant, f"seed{self.seed}")

    @classmethod
    def parse(cls, path: str | Path) -> "Run":
        """Read a run's directory name. Raises UserError when it does not have the form above."""
        match = _RUN.fullmatch(str(path).rstrip("/"))
        if match is None:
            raise UserError(f"{path}: not a run; a run is runs/SCALE/DATASET/METHOD/VARIANT/seedN")
        parts = match.groupdict()
        return cls(parts["scale"], parts["dataset"], parts["method"], parts["variant"], int(parts["seed"]))

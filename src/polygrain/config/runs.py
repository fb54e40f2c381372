"""A run is a path: `runs/{scale}/{dataset}/{method}/{variant}/seed{seed}`."""

import re
from dataclasses import dataclass
from pathlib import Path

from polygrain.provenance.errors import UserError

SEGMENT = r"[^/]+"
_RUN = re.compile(
    rf"runs/(?P<scale>{SEGMENT})/(?P<dataset>{SEGMENT})/(?P<method>{SEGMENT})/(?P<variant>{SEGMENT})/seed(?P<seed>{SEGMENT})"
)
_NAME = re.compile(r"[a-z][a-z0-9.-]*")
_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"))
_SEED = re.compile(r"0|[1-9][0-9]{0,8}")


def check_name(where: str, kind: str, name: str) -> None:
    """Refuse a name of a scale, data set, method, variant, protocol or table that paths and YAML cannot hold.

    Raises UserError that begins with `where` and says what is allowed.
    """
    if not _NAME.fullmatch(name) or name in _WORDS:
        raise UserError(
            f"{where}: {kind} '{name}': rename it; a name begins with a letter, goes on with lower-case letters,"
            " digits, - and ., and is no word of YAML such as null, no or on"
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
        """Read a run's directory name. Raises UserError for another form and for names that are not allowed."""
        match = _RUN.fullmatch(str(path).rstrip("/"))
        if match is None:
            raise UserError(f"{path}: not a run; a run is runs/SCALE/DATASET/METHOD/VARIANT/seedN")
        parts = match.groupdict()
        for kind in ("scale", "dataset", "method", "variant"):
            check_name(str(path), kind, parts[kind])
        if not _SEED.fullmatch(parts["seed"]):
            raise UserError(
                f"{path}: seed '{parts['seed']}': a seed is a whole number from 0 to 999999999 without leading zeros"
            )
        return cls(parts["scale"], parts["dataset"], parts["method"], parts["variant"], int(parts["seed"]))

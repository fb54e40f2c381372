"""The tuning of a method as a person writes it (params/tune/*.yaml), as types."""

from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import Field, model_validator

from polygrain.config.check import Strict
from polygrain.config.tune import FINALISTS, TRIALS

Key = Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z0-9_]+)+$")]
Laws = Literal["choose", "log", "linear"]


class WrittenTuning(Strict):
    """What is searched for one method."""

    method: str
    paper: Annotated[dict[Key, Any], Field(min_length=1)]
    """What trial 0 takes for every key of `space`: the paper's own values, and the scale's where the paper has none."""
    space: Annotated[dict[Key, dict[Laws, list[Any]]], Field(min_length=1)]
    """Dotted key of a run's configuration -> `choose: [values]`, or `log` or `linear: [low, high]`."""
    finalists: list[Annotated[int, Field(ge=0, lt=TRIALS)]]
    """The best trials, which are trained again at the second scale; empty until they are known."""

    @model_validator(mode="after")
    def _laws(self) -> Self:
        for key, laws in self.space.items():
            (law, given), *others = laws.items() if laws else [("", [])]
            if others or not law:
                raise ValueError(f"space.{key}: give one of choose, log and linear")
            if law != "choose" and not _is_range(given, above=0 if law == "log" else None):
                raise ValueError(f"space.{key}: {law} needs two numbers, the lower first{_positive(law)}")
            if not given:
                raise ValueError(f"space.{key}: choose needs values")
        if unknown := self.paper.keys() - self.space.keys():
            raise ValueError(f"paper.{min(unknown)}: not in space, so the other trials would not have it")
        if missing := self.space.keys() - self.paper.keys():
            raise ValueError(f"paper: lacks {min(missing)} of space; a trial depends on no recipe in what is searched")
        if self.finalists and len(set(self.finalists)) != FINALISTS:
            raise ValueError(f"finalists: name the best {FINALISTS} trials, or none, not {self.finalists}")
        return self


class Tuning(TypedDict):
    """The same as it is read."""

    method: str
    paper: dict[str, Any]
    space: dict[str, dict[str, Any]]
    finalists: list[int]


def _is_range(given: list[Any], above: float | None) -> bool:
    numbers = [value for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(given) == 2 and numbers[0] < numbers[1] and (above is None or numbers[0] > above)


def _positive(law: str) -> str:
    return ", both above 0" if law == "log" else ""

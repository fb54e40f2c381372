"""The ledger of a method as a person writes it (params/ledger/*.yaml), as types."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from polygrain.config.check import Strict
from polygrain.config.ledger import ARMS

Words = Annotated[str, Field(min_length=1)]
_GROUPS = ("backbone", "augmentation", "optimizer")
_KEY = r"^[a-z_]+(\.[a-z0-9_-]+)+$"


class WrittenArm(Strict):
    """One of the two ways: what it does, where that is written, the value of the switch."""

    says: Words
    where: Words
    value: Any


class WrittenLine(Strict):
    """A place in the method with two ways of doing it."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9.]+)*$")]
    kind: Literal["deviation", "reconstructed"]
    """Text and release differ; or ours, where no source says it, or a switch of the ablation grid."""
    what: Words
    """The place in the method, one sentence."""
    described: WrittenArm | None = None
    released: WrittenArm | None = None
    ours: WrittenArm | None = None
    other: WrittenArm | None = None
    switch: Annotated[str, Field(pattern=_KEY)]
    """Dotted key of a run's configuration."""
    needs: Annotated[
        dict[Annotated[str, Field(pattern=rf"{_KEY}|^({'|'.join(_GROUPS)})$")], Any], Field(alias="with")
    ] = Field(default_factory=dict)
    """What both arms need for the switch to show: dotted keys, or a choice of a group of params/."""

    @model_validator(mode="after")
    def _two_arms(self) -> Self:
        first, second = ARMS[self.kind]
        given = {name: getattr(self, name) for names in ARMS.values() for name in names if getattr(self, name)}
        if given.keys() != {first, second}:
            raise ValueError(
                f"line '{self.id}' is of kind {self.kind}: it needs {first} and {second}, and no other arm"
            )
        if given[first].value == given[second].value:
            raise ValueError(f"line '{self.id}' has the value {given[first].value!r} in both arms; give each its own")
        for name in _GROUPS:
            if not isinstance(self.needs.get(name, ""), str):
                raise ValueError(f"key 'with.{name}' must be text, not {self.needs[name]!r}")
        return self


class Ledger(Strict):
    """The lines of one method."""

    method: Words
    lines: Annotated[list[WrittenLine], Field(min_length=1)]

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        names = [line.id for line in self.lines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"line '{name}' occurs more than once; give each its own id")
        return self

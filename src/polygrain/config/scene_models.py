"""A file of params/scenes, as types, and what must hold before scenes are made."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from polygrain.config.check import Strict
from polygrain.config.models import Count, Expense, Natural


class EachSplit(Strict):
    """A number for each split."""

    train: Natural
    validation: Natural
    test: Natural


class ScenesChoice(Strict):
    """Scenes made of packed data sets (params/scenes/NAME.yaml)."""

    name: str
    datasets: Annotated[list[str], Field(min_length=1)]
    side: Annotated[int, Field(ge=16, le=256)]
    scenes: EachSplit
    clips: EachSplit
    frames: Count
    objects: Annotated[list[Count], Field(min_length=2, max_length=2)]
    distractors: Annotated[list[Natural], Field(min_length=2, max_length=2)]
    extent: Annotated[list[Annotated[int, Field(ge=6)]], Field(min_length=2, max_length=2)]
    parts: Annotated[int, Field(ge=1, le=4)]
    textures: EachSplit
    seed: Natural
    cost: Expense

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in ("objects", "distractors", "extent"):
            least, most = getattr(self, key)
            if least > most:
                raise ValueError(f"{key}: the least, {least}, is more than the most, {most}")
        if self.objects[1] + self.distractors[1] > 50 or self.extent[1] > self.side:
            raise ValueError("objects and distractors must be at most 50 together, and extent at most side")
        for split in ("train", "validation", "test"):
            wanted = getattr(self.scenes, split) + getattr(self.clips, split)
            if wanted and not getattr(self.textures, split):
                raise ValueError(f"textures.{split} is 0, but the split has scenes or clips; give it textures")
        return self

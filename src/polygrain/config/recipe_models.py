"""The view recipes of an augmentation as a person writes them (params/augmentation/*.yaml), as types.

`polygrain.views.recipe` says what the parts do; a test holds its fields and these together.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from polygrain.config.check import Strict
from polygrain.config.signature import constant
from polygrain.provenance.errors import UserError, nearest

VIEWS = "polygrain.views.recipe"


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 < pair[0] <= pair[1]:
        raise ValueError(f"must be a pair 0 < low <= high, not {list(pair)!r}")
    return pair


Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_rising)]
Shares = Annotated[tuple[Probability, Probability], Field(strict=False), AfterValidator(_rising)]


class JitterChoice(Strict):
    """Strengths of the colour jitter."""

    probability: Probability
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class BlurChoice(Strict):
    """Gaussian blur, sigma in pixels."""

    probability: Probability
    sigma: Range


class SolariseChoice(Strict):
    """Inversion above a threshold."""

    probability: Probability
    threshold: Probability = 0.5


class OverlapChoice(Strict):
    """Least IoU with the crop of view 0."""

    minimum: Probability


class RandAugmentChoice(Strict):
    """Some of the operations on the whole image."""

    probability: Probability
    operations: Annotated[list[str], Field(min_length=1)]
    count: Annotated[int, Field(ge=1)]
    magnitude: Annotated[float, Field(ge=0, le=10)]
    deviation: Strength

    @model_validator(mode="after")
    def _known_operations(self) -> Self:
        known = constant(VIEWS, "OPERATIONS")
        for name in self.operations:
            if name not in known:
                raise ValueError(f"no operation named '{name}'{nearest(name, known)}")
        if len(set(self.operations)) < len(self.operations):
            raise ValueError("operations names an operation twice; name each once")
        if self.count > len(self.operations):
            raise ValueError(f"count must be at most the {len(self.operations)} operations, not {self.count}")
        return self


class ErasingChoice(Strict):
    """One box of noise."""

    probability: Probability
    area: Shares
    ratio: Range
    before_normalise: bool = False


class RecipeChoice(Strict):
    """One kind of view."""

    size: Annotated[int, Field(ge=4)]
    scale: Shares
    ratio: Range
    flip: Probability
    grey: Probability = 0.0
    jitter: JitterChoice | None = None
    blur: BlurChoice | None = None
    solarise: SolariseChoice | None = None
    overlap: OverlapChoice | None = None
    randaugment: RandAugmentChoice | None = None
    erasing: ErasingChoice | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Coin(Strict):
    """Two other recipes, and the coin that chooses between them for each image."""

    weak: str
    strong: str
    probability: Probability
    coin: Literal["shared", "own"]


class MixedChoice(Strict):
    """A recipe that is made of two others, and of nothing else."""

    mixed: Coin


def check_recipes(where: str, recipes: dict[str, dict[str, Any]]) -> None:
    """Check the view recipes of an augmentation. Raises UserError on the first fault."""
    single = {
        name: RecipeChoice.of(where, recipe, f"augmentation.{name}")
        for name, recipe in recipes.items()
        if "mixed" not in recipe
    }
    for name in (name for name in recipes if name not in single):
        coin = MixedChoice.of(where, recipes[name], f"augmentation.{name}").mixed
        for side, chosen in (("weak", coin.weak), ("strong", coin.strong)):
            if chosen not in single:
                raise UserError(
                    f"{where}: augmentation.{name}.mixed.{side}: no recipe named '{chosen}' that is not mixed itself"
                    f"{nearest(chosen, single)}"
                )
        weak, strong = single[coin.weak], single[coin.strong]
        for key in ("size", "interpolation"):
            if getattr(weak, key) != getattr(strong, key):
                raise UserError(
                    f"{where}: augmentation.{name}: '{coin.weak}' has {key} {getattr(weak, key)}, '{coin.strong}' has"
                    f" {getattr(strong, key)}; make them equal"
                )

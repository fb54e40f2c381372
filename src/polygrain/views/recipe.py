"""Recipes of views as plain values, named as in params/augmentation; `config.recipe_models` has checked them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]

# RandAugment's "increasing" operations; draws are indices into this tuple
OPERATIONS = (
    "auto-contrast", "equalise", "invert", "rotate", "posterise", "solarise", "solarise-add", "colour", "contrast",
    "brightness", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y",
)  # fmt: skip
MIXED = "mixed"


@dataclass(frozen=True)
class Jitter:
    """Colour jitter: factors uniform on [max(0, 1 - strength), 1 + strength], hue on [-hue, hue] turns."""

    probability: float
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with sigma uniform on `sigma`, in pixels of the view."""

    probability: float
    sigma: Range


@dataclass(frozen=True)
class Solarise:
    """Pixels at or above `threshold` (0..1) are inverted."""

    probability: float
    threshold: float = 0.5


@dataclass(frozen=True)
class Overlap:
    """The crop is drawn again until its IoU with the crop of the batch's view 0 is above `minimum`."""

    minimum: float


@dataclass(frozen=True)
class RandAugment:
    """`count` of the `operations`, without replacement, on the whole image, each with `probability`.

    The magnitude is normal around `magnitude` with standard deviation `deviation`, clipped to 0..10.
    """

    probability: float
    operations: tuple[str, ...]
    count: int
    magnitude: float
    deviation: float


@dataclass(frozen=True)
class Erasing:
    """A box of the view, `area` its share, `ratio` its height over width (log-uniform), is filled with normal noise."""

    probability: float
    area: Range
    ratio: Range
    before_normalise: bool = False


@dataclass(frozen=True)
class Recipe:
    """One kind of view: RandAugment, crop, flip, jitter, greyscale, blur, solarise, normalise, erasing, in this order.

    `scale` is the crop's share of the source area, `ratio` its width over height (log-uniform), `size` the side of the
    view in pixels; `flip` and `grey` are probabilities; `interpolation` is how the crop is resized. A part that is
    missing or has probability 0 is never drawn.
    """

    size: int
    scale: Range
    ratio: Range
    flip: float
    grey: float = 0.0
    jitter: Jitter | None = None
    blur: Blur | None = None
    solarise: Solarise | None = None
    overlap: Overlap | None = None
    randaugment: RandAugment | None = None
    erasing: Erasing | None = None
    interpolation: str = "bilinear"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Recipe":
        """Read a recipe from YAML values."""
        parts = {name: _part(kind, mapping.get(name)) for name, kind in _PARTS.items()}
        return cls(**{**_frozen(mapping), **parts})


@dataclass(frozen=True)
class Mixed:
    """Per image the `weak` recipe, with `probability`, or the `strong` one; `shared`: the same in all such views."""

    weak: Recipe
    strong: Recipe
    probability: float
    shared: bool

    @property
    def size(self) -> int:
        """Side of the view in pixels, the same for weak and strong."""
        return self.weak.size

    @property
    def interpolation(self) -> str:
        """How crops are resized, the same for weak and strong."""
        return self.weak.interpolation


ViewRecipe = Recipe | Mixed

_PARTS: dict[str, type[Any]] = {
    "jitter": Jitter,
    "blur": Blur,
    "solarise": Solarise,
    "overlap": Overlap,
    "randaugment": RandAugment,
    "erasing": Erasing,
}


def read_recipes(mapping: Mapping[str, Mapping[str, Any]]) -> dict[str, ViewRecipe]:
    """Read the named recipes of an augmentation, mixed ones included."""
    single = {name: Recipe.from_mapping(values) for name, values in mapping.items() if MIXED not in values}
    return {name: single[name] if name in single else _mixed(mapping[name][MIXED], single) for name in mapping}


def _mixed(values: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> Mixed:
    weak, strong = recipes[values["weak"]], recipes[values["strong"]]
    return Mixed(weak, strong, values["probability"], values["coin"] == "shared")


def _part(kind: type[Any], values: Mapping[str, Any] | None) -> Any:
    """An optional part of a recipe; None where it is never applied."""
    if values is None or values.get("probability", 1.0) == 0.0:
        return None
    return kind(**_frozen(values))


def _frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

"""What a view is made of, as plain values; the YAML of params/augmentation says the same words."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from polygrain.provenance.errors import UserError, nearest

Range = tuple[float, float]

# RandAugment's "increasing" operations; a place in this list is what is drawn
OPERATIONS = (
    "auto-contrast", "equalise", "invert", "rotate", "posterise", "solarise", "solarise-add", "colour", "contrast",
    "brightness", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y",
)  # fmt: skip
INTERPOLATIONS = ("bilinear", "bicubic")
COINS = ("shared", "own")
MIXED = "mixed"


@dataclass(frozen=True)
class Jitter:
    """Colour jitter: factors uniform on [max(0, 1 - strength), 1 + strength], hue shift on [-hue, hue] turns."""

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
    """`count` of the `operations`, without replacement, on the whole image before the crop, each with `probability`.

    The magnitude is normal around `magnitude` with `deviation`, cut to 0..10.
    """

    probability: float
    operations: tuple[str, ...]
    count: int
    magnitude: float
    deviation: float


@dataclass(frozen=True)
class Erasing:
    """One box of the view is filled with normal noise, behind or (`before_normalise`) in front of the normalisation.

    `area` is its share of the view, `ratio` its height over width (log-uniform).
    """

    probability: float
    area: Range
    ratio: Range
    before_normalise: bool = False


@dataclass(frozen=True)
class Recipe:
    """One kind of view: random resized crop, flip, jitter, greyscale, blur, solarise, normalise, in this order.

    RandAugment comes first of all, erasing last.


    `scale` is the crop's share of the source area, `ratio` its width over height (log-uniform), `size` the side of the
    view in pixels; `flip` and `grey` are probabilities; `interpolation` is how the crop is resized. A part that is left
    out, or has probability 0, is never drawn and costs nothing.
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
        """Read a recipe as YAML gives it. Raises UserError naming the key that is unknown, missing or out of range."""
        values = _closed(cls, mapping, "view recipe")
        size = values["size"]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"view recipe: key 'size' must be a whole number of pixels above 0, not {size!r}")
        return cls(
            size=size,
            scale=_range("scale", values["scale"], 1.0),
            ratio=_range("ratio", values["ratio"]),
            flip=_probability("flip", values["flip"]),
            grey=_probability("grey", values.get("grey", 0.0)),
            jitter=_jitter(values.get("jitter")),
            blur=_blur(values.get("blur")),
            solarise=_solarise(values.get("solarise")),
            overlap=_overlap(values.get("overlap")),
            randaugment=_randaugment(values.get("randaugment")),
            erasing=_erasing(values.get("erasing")),
            interpolation=_choice("interpolation", values.get("interpolation", "bilinear"), INTERPOLATIONS),
        )


@dataclass(frozen=True)
class Mixed:
    """Per image a coin chooses the `weak` recipe, with `probability`, or the `strong` one.

    `shared`: the coin is that of the image, the same in all views of a batch that share it; else each view has its own.
    """

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


def read_recipes(mapping: Mapping[str, Mapping[str, Any]]) -> dict[str, ViewRecipe]:
    """Read the named recipes of an augmentation, mixed ones included. Raises UserError on the first fault."""
    single = {name: Recipe.from_mapping(values) for name, values in mapping.items() if MIXED not in values}
    return {name: single[name] if name in single else _mixed(name, mapping[name], single) for name in mapping}


def _mixed(name: str, mapping: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> Mixed:
    where = f"augmentation.{name}"
    if len(mapping) > 1:
        beside = next(key for key in mapping if key != MIXED)
        raise UserError(f"{where}: key '{beside}' beside '{MIXED}'; a mixed recipe is made of two others, nothing else")
    values = _closed_keys(
        dict.fromkeys(("weak", "strong", "probability", "coin"), True), mapping[MIXED], f"{where}.{MIXED}"
    )
    for side in ("weak", "strong"):
        if values[side] not in recipes:
            known = nearest(str(values[side]), recipes)
            raise UserError(f"{where}.{MIXED}.{side}: no recipe named '{values[side]}' that is not mixed itself{known}")
    weak, strong = recipes[values["weak"]], recipes[values["strong"]]
    for key in ("size", "interpolation"):
        if getattr(weak, key) != getattr(strong, key):
            raise UserError(
                f"{where}: '{values['weak']}' has {key} {getattr(weak, key)}, '{values['strong']}' has"
                f" {getattr(strong, key)}; make them equal"
            )
    coin = _choice("mixed.coin", values["coin"], COINS)
    return Mixed(weak, strong, _probability("mixed.probability", values["probability"]), coin == "shared")


def _jitter(mapping: Mapping[str, Any] | None) -> Jitter | None:
    values = _part(Jitter, mapping, "jitter")
    for name in values:
        limit = {"probability": 1.0, "hue": 0.5}.get(name)
        values[name] = _number(f"jitter.{name}", values[name], limit)
    jitter = Jitter(**values) if values else None
    if jitter is None or jitter.brightness == jitter.contrast == jitter.saturation == jitter.hue == 0.0:
        return None
    return jitter


def _blur(mapping: Mapping[str, Any] | None) -> Blur | None:
    values = _part(Blur, mapping, "blur")
    if not values:
        return None
    return Blur(_probability("blur.probability", values["probability"]), _range("blur.sigma", values["sigma"]))


def _solarise(mapping: Mapping[str, Any] | None) -> Solarise | None:
    values = _part(Solarise, mapping, "solarise")
    return (
        Solarise(**{name: _number(f"solarise.{name}", value, 1.0) for name, value in values.items()})
        if values
        else None
    )


def _overlap(mapping: Mapping[str, Any] | None) -> Overlap | None:
    if mapping is None:
        return None
    return Overlap(_number("overlap.minimum", _closed(Overlap, mapping, "view recipe: overlap")["minimum"], 1.0))


def _randaugment(mapping: Mapping[str, Any] | None) -> RandAugment | None:
    values = _part(RandAugment, mapping, "randaugment")
    if not values:
        return None
    operations, count = values["operations"], values["count"]
    if not isinstance(operations, Sequence) or isinstance(operations, str) or not operations:
        raise UserError(f"view recipe: key 'randaugment.operations' must be a list of names, not {operations!r}")
    for name in operations:
        if name not in OPERATIONS:
            raise UserError(
                f"view recipe: randaugment.operations: no operation named '{name}'{nearest(str(name), OPERATIONS)}"
            )
    if len(set(operations)) < len(operations):
        raise UserError("view recipe: randaugment.operations names an operation twice; name each once")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= len(operations):
        raise UserError(
            f"view recipe: key 'randaugment.count' must be a whole number between 1 and the {len(operations)}"
            f" operations, not {count!r}"
        )
    return RandAugment(
        probability=_probability("randaugment.probability", values["probability"]),
        operations=tuple(operations),
        count=count,
        magnitude=_number("randaugment.magnitude", values["magnitude"], 10.0),
        deviation=_number("randaugment.deviation", values["deviation"]),
    )


def _erasing(mapping: Mapping[str, Any] | None) -> Erasing | None:
    values = _part(Erasing, mapping, "erasing")
    if not values:
        return None
    before = values.get("before_normalise", False)
    if not isinstance(before, bool):
        raise UserError(f"view recipe: key 'erasing.before_normalise' must be true or false, not {before!r}")
    return Erasing(
        probability=_probability("erasing.probability", values["probability"]),
        area=_range("erasing.area", values["area"], 1.0),
        ratio=_range("erasing.ratio", values["ratio"]),
        before_normalise=before,
    )


def _part(part: type, mapping: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Checked values of one optional part; empty when the part never happens."""
    if mapping is None:
        return {}
    values = _closed(part, mapping, f"view recipe: {where}")
    return values if _probability(f"{where}.probability", values["probability"]) > 0.0 else {}


def _closed(cls: type, mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    return _closed_keys({field.name: field.default is MISSING for field in fields(cls)}, mapping, where)


def _closed_keys(known: Mapping[str, bool], mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of `mapping`, whose keys must be among those of `known`, which says which ones are required."""
    for key in mapping:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
    for key, required in known.items():
        if required and key not in mapping:
            raise UserError(f"{where}: key '{key}' is missing")
    return dict(mapping)


def _number(key: str, value: Any, limit: float | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= (limit or value):
        bound = "at least 0" if limit is None else f"between 0 and {limit:g}"
        raise UserError(f"view recipe: key '{key}' must be a number {bound}, not {value!r}")
    return float(value)


def _choice(key: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise UserError(f"view recipe: key '{key}' must be one of {', '.join(known)}, not {value!r}")
    return str(value)


def _probability(key: str, value: Any) -> float:
    return _number(key, value, 1.0)


def _range(key: str, value: Any, limit: float | None = None) -> Range:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise UserError(f"view recipe: key '{key}' must be a pair [low, high], not {value!r}")
    low, high = (_number(key, end, limit) for end in value)
    if not 0.0 < low <= high:
        raise UserError(f"view recipe: key '{key}' must be a pair 0 < low <= high, not {list(value)!r}")
    return low, high

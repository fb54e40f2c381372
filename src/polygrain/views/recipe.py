"""What a view is made of, as plain values; the YAML of params/augmentation says the same words."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from polygrain.provenance.errors import UserError, nearest

Range = tuple[float, float]


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
class Recipe:
    """One kind of view: random resized crop, flip, jitter, greyscale, blur, solarise, normalise, in this order.

    `scale` is the crop's share of the source area, `ratio` its width over height (log-uniform), `size` the side of the
    view in pixels; `flip` and `grey` are probabilities. A part that is left out, or has probability 0, is never drawn
    and costs nothing.
    """

    size: int
    scale: Range
    ratio: Range
    flip: float
    grey: float = 0.0
    jitter: Jitter | None = None
    blur: Blur | None = None
    solarise: Solarise | None = None

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
        )


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


def _part(part: type, mapping: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Checked values of one optional part; empty when the part never happens."""
    if mapping is None:
        return {}
    values = _closed(part, mapping, f"view recipe: {where}")
    return values if _probability(f"{where}.probability", values["probability"]) > 0.0 else {}


def _closed(cls: type, mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {field.name: field.default is MISSING for field in fields(cls)}
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


def _probability(key: str, value: Any) -> float:
    return _number(key, value, 1.0)


def _range(key: str, value: Any, limit: float | None = None) -> Range:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise UserError(f"view recipe: key '{key}' must be a pair [low, high], not {value!r}")
    low, high = (_number(key, end, limit) for end in value)
    if not 0.0 < low <= high:
        raise UserError(f"view recipe: key '{key}' must be a pair 0 < low <= high, not {list(value)!r}")
    return low, high

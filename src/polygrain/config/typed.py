"""The configuration that reaches a job, as types for the type checker.

`polygrain.config.models` has checked the values before; a job loads no pydantic, and imports this for checking only.
"""

from typing import Any, Literal, NotRequired, TypedDict

Values = dict[str, Any]
"""Keyword values of a method, a backbone, an optimiser or a protocol, checked against its signature."""


class ChannelMoments(TypedDict):
    """Mean and standard deviation per channel."""

    mean: list[float]
    std: list[float]


class Dataset(TypedDict):
    """What a data set is packed by; the keys that are not required belong to encoded images."""

    name: str
    reader: str
    validation: int
    test: int
    seed: int
    folder: NotRequired[str | None]
    classes: NotRequired[list[str] | None]
    expected: NotRequired[dict[str, int | None] | None]
    statistics: NotRequired[ChannelMoments | None]
    licence: NotRequired[str | None]
    source: NotRequired[str | None]
    parts: NotRequired[dict[str, str | None] | None]
    on_bad: NotRequired[Literal["refuse", "skip"]]
    duplicates: NotRequired[Literal["refuse", "allow"]]
    limits: NotRequired[dict[str, int] | None]
    compare: NotRequired[Literal["times", "contents"]]


class Scenes(TypedDict):
    """What scenes are composed by."""

    name: str
    datasets: list[str]
    side: int
    scenes: dict[str, int]
    clips: dict[str, int]
    frames: int
    objects: list[int]
    distractors: list[int]
    extent: list[int]
    parts: int
    textures: dict[str, int]
    seed: int


class LearningRate(TypedDict):
    """The law of the learning rate."""

    name: str
    base: float
    final: float
    start: float
    warmup: float
    parts: NotRequired[int]


class LaterClip(TypedDict):
    """Another limit from an epoch on, counted from 0."""

    epoch: int
    maximum: float


class Clip(TypedDict):
    """How gradients are shortened."""

    rule: Literal["none", "global", "each"]
    maximum: float | None
    later: NotRequired[LaterClip | None]


class Optimizer(TypedDict):
    """The optimiser, its learning rate and its clipping."""

    name: str
    values: Values
    final_weight_decay: float | None
    schedule: LearningRate
    clip: Clip


class Method(TypedDict):
    """The method, by name."""

    name: str
    values: Values


class Pretraining(TypedDict):
    """What pre-training sees, and how often it writes."""

    device: str
    workers: int
    split: str
    images: int | None
    batch: int
    log_every: int
    state_every: int


class Pretrain(TypedDict):
    """The configuration of a pretrain stage."""

    augmentation: dict[str, Values]
    backbone: Values
    input_size: int
    method: Method
    optimizer: Optimizer
    pretrain: Pretraining
    statistics: ChannelMoments | None
    seed: int
    steps: int


class Shown(TypedDict):
    """How images of some data sets are shown to a run's encoder."""

    backbone: Values
    datasets: list[str]
    statistics: ChannelMoments | None
    features: Values
    pretrained: NotRequired[str]


class Protocol(TypedDict):
    """The configuration of a protocol's stage; one that needs more than features is a `Shown` as well."""

    protocol: str
    module: NotRequired[str]
    needs: Literal["features", "tokens", "backbone"]
    datasets: list[str]
    values: Values
    scenes: NotRequired[str]

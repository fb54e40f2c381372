"""The resolved configuration of a run, as types, and all that must hold before anything is started.

The values that only a method, backbone, optimiser or protocol reads are held against the signature in its source
(`polygrain.config.signature`).
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from polygrain.config.check import Strict
from polygrain.config.recipe_models import check_recipes
from polygrain.config.run_checks import check_mode, check_resets, check_rows
from polygrain.config.signature import constant, modules, values_model
from polygrain.provenance.errors import UserError, nearest

Side = Annotated[int, Field(ge=4)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Expense(Strict):
    """What a stage is declared to cost: minutes of one core, peak memory in MB."""

    minutes: NonNegative
    memory: Count


class ExpenseOfPasses(Expense):
    """What pre-training is declared to cost."""

    encoder_passes: Positive | None = None
    """The budget that the minutes are for: a run that spends another one costs its share. Null: whatever it spends."""


class Moments(Strict):
    """Mean and standard deviation per channel of pixels scaled to 0..1."""

    mean: Annotated[list[float], Field(min_length=1)]
    std: Annotated[list[Positive], Field(min_length=1)]


class Expected(Strict):
    """What a whole copy of a data set holds; null where the number is unknown."""

    classes: int | None
    train: int | None
    test: int | None


FolderName = Annotated[str, Field(pattern=r"^[^./@\\][^/\\]*$")]


class Parts(Strict):
    """Which folder of an image folder is which part; null: there is none."""

    train: FolderName = "train"
    test: FolderName | None = None
    """Left out: the labelled folder val or test."""
    unlabelled: FolderName | None = None
    """Left out: the folder unlabelled, if there is one."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        named = [name for name in (self.train, self.test, self.unlabelled) if name is not None]
        if len(set(named)) < len(named):
            raise ValueError(f"each part needs a folder of its own, not {', '.join(named)}")
        return self


class ImageLimits(Strict):
    """What one image file may ask of the memory; a larger one counts as bad."""

    pixels: Count = 178_956_970
    """Height times width."""
    text: Count = 2**20
    """Bytes of one text chunk of a PNG file, unpacked."""


class DatasetChoice(Strict):
    """A data set: who reads it, its format, how it is split."""

    name: str
    reader: str
    format: Literal["pixels", "encoded"]
    """Arrays of equally large images, or shards of encoded ones that are decoded when they are needed."""
    side: Side
    """Default of `input_size`."""
    local_side: Side
    """Side of small crops, in augmentations that follow the data set."""
    validation: Count
    test: Natural
    seed: Natural
    cost: Expense
    folder: str | None = None
    """Encoded images: the folder or edition to read."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """Class folders to take; null takes all."""
    expected: Expected | None = None
    statistics: Moments | None = None
    licence: str | None = None
    source: str | None = None
    parts: Parts | None = None
    on_bad: Literal["refuse", "skip"] = "refuse"
    """Whether files that are no whole image stop the packing, each named, or are left out and counted."""
    duplicates: Literal["refuse", "allow"] = "refuse"
    """Whether the same file may lie in two splits of an image folder."""
    limits: ImageLimits | None = None
    compare: Literal["times", "contents"] = "times"
    """By what a changed file of an image folder is noticed: its size and time, or its bytes, all read at each start."""

    @model_validator(mode="after")
    def _encoded(self) -> Self:
        for key in ("folder", "statistics") if self.format == "encoded" else ():
            if key not in self.model_fields_set:
                raise ValueError(f"key '{key}' is missing; a data set of encoded images needs it")
        for name in self.classes or ():
            if self.classes and self.classes.count(name) > 1:
                raise ValueError(f"classes names '{name}' twice; each class needs one label")
        return self


class ScheduleChoice(Strict):
    """The law of the learning rate."""

    name: Literal["constant", "linear", "cosine", "cosine_closed_warmup", "cosine_to_final"]
    base: Positive
    final: NonNegative
    start: NonNegative
    warmup: Annotated[float, Field(ge=0, le=1)]
    """Share of the run's steps; `${epochs:10}` is that of ten epochs."""
    parts: Count = 1
    """Parts of a batch that count as steps of the schedule; the rate is that of the last."""


class LaterClip(Strict):
    """Another limit from an epoch on, counted from 0."""

    epoch: Count
    maximum: Positive


class ClipChoice(Strict):
    """How gradients are shortened."""

    rule: Literal["none", "global", "each"]
    maximum: Positive | None
    """Of the joint norm, or of each tensor's; null, and only then, with rule `none`."""
    later: LaterClip | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.rule == "none") != (self.maximum is None):
            raise ValueError("rule none needs maximum: null, and every other rule a number")
        if self.rule == "none" and self.later is not None:
            raise ValueError("rule none has no later maximum")
        return self


class OptimizerChoice(Strict):
    """The optimiser, its learning rate and its clipping."""

    name: Literal["adamw", "sgd", "lars", "larc"]
    values: dict[str, Any]
    final_weight_decay: NonNegative | None
    """Weight decay moves by half a cosine from `values.weight_decay` to this; null: it stays."""
    schedule: ScheduleChoice
    clip: ClipChoice


class MethodChoice(Strict):
    """The method and what it declares about itself."""

    name: str
    grains: list[Literal["patch", "region", "instance", "local-group", "weak-class", "group", "class"]]
    """What a run contrasts: its loss terms, one per grain, under these names."""
    encoder_passes: NonNegative
    """Units per image and step."""
    start_passes: NonNegative
    """Units per image of the pre-training subset, spent once before the first step."""
    mode: Literal["described", "released"] | None
    """Preset of the switches in which text and released code differ; null for a method without such switches."""
    values: dict[str, Any]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.grains)) < len(self.grains):
            raise ValueError(f"grains {self.grains} names one twice; name each once")
        return self


class PretrainChoice(Strict):
    """What pre-training sees, and how long."""

    device: Literal["cpu", "cuda"]
    workers: Natural
    """Processes that decode encoded images ahead; 0 decodes in the training process."""
    split: Literal["train", "unlabelled", "train+unlabelled"]
    images: Count
    batch: Annotated[int, Field(ge=2)]
    encoder_passes: Count | None
    """The length of a run: this, or `epochs`."""
    epochs: Positive | None
    log_every: Count
    state_every: Count

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        if self.batch > self.images:
            raise ValueError(
                f"pretrain.batch {self.batch} is larger than pretrain.images {self.images};"
                " lower the batch or raise the subset"
            )
        if (self.encoder_passes is None) == (self.epochs is None):
            raise ValueError("give one of pretrain.encoder_passes and pretrain.epochs, and null for the other")
        return self


class ProtocolChoice(Strict):
    """One evaluation protocol (params/evaluate/NAME.yaml)."""

    needs: Literal["features", "tokens", "backbone"]
    datasets: Literal["own", "transfer", "all"] | Annotated[list[str], Field(min_length=1)]
    device: Literal["cpu", "cuda"]
    cost: Expense
    values: dict[str, Any]
    module: str | None = None
    """The module of polygrain.evaluate that computes it; null for the one with the protocol's own name."""
    methods: Annotated[list[str], Field(min_length=1)] | None = None
    """The methods whose runs it can judge; null for all."""
    scenes: str | None = None
    """The scenes of params/scenes that it judges on; then the values of `datasets` play no part but `own`."""

    @model_validator(mode="after")
    def _on_scenes(self) -> Self:
        if self.scenes is not None and (self.needs == "features" or self.datasets != "own"):
            raise ValueError("a protocol with scenes needs: tokens or backbone, and datasets: own")
        return self


class EvaluateChoice(Strict):
    """On which data sets, and how, the encoder is judged."""

    transfer: list[str]
    features: dict[str, Any]
    protocols: dict[str, ProtocolChoice]


class Costs(Strict):
    """What the stages of a run are declared to cost."""

    pretrain: ExpenseOfPasses
    features: Expense


class RunModel(Strict):
    """A whole resolved configuration (params/run.yaml)."""

    input_size: Side
    statistics: Moments | None
    dataset: DatasetChoice
    augmentation: dict[str, dict[str, Any]]
    backbone: dict[str, Any]
    optimizer: OptimizerChoice
    method: MethodChoice
    pretrain: PretrainChoice
    evaluate: EvaluateChoice
    cost: Costs


class WorkflowModel(Strict):
    """What `snakemake --config KEY=VALUE` takes. Everything that decides a number lives in params/ instead."""

    data: str = ""
    """A local folder with raw data sets, read before any download (also POLYGRAIN_DATA)."""


def load_run(where: str, config: dict[str, Any], params: Path) -> None:
    """Check the resolved configuration of a run. Raises UserError naming the run, the key and the nearest known key."""
    run = RunModel.of(where, config)
    method, optimizer = run.method, run.optimizer
    module = _module(where, "methods", method.name)
    values_model(module, constant(module, "METHOD")).of(where, method.values, "method.values")
    name = str(run.backbone.get("name"))
    backbone = {key: value for key, value in run.backbone.items() if key != "name"}
    known = values_model(_module(where, "backbones", name), "build", without=("channels",))
    known.of(where, backbone, "backbone")
    values_model("polygrain.nn.optim", optimizer.name).of(where, optimizer.values, "optimizer.values")
    values_model("polygrain.evaluate.given", "Encoder").of(where, run.evaluate.features, "evaluate.features")
    for name, protocol in run.evaluate.protocols.items():
        evaluate = values_model(_module(where, "evaluate", protocol.module or name), "evaluate")
        evaluate.of(where, protocol.values, f"evaluate.protocols.{name}.values")
    _module(where, "data.readers", run.dataset.reader)
    check_recipes(where, run.augmentation)
    check_mode(where, method, params)
    check_rows(where, run)
    check_resets(where, run.method.values, config)


def _module(where: str, package: str, name: str) -> str:
    known = modules(f"polygrain.{package}")
    file = name.replace("-", "_")
    if file not in known:
        raise UserError(f"{where}: no module '{name}' in polygrain.{package}{nearest(file, known)}")
    return f"polygrain.{package}.{file}"

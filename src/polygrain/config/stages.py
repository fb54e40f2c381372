"""The stages of the workflow: each one's configuration, the code that decides its output, its files and its cost.

Paths are relative to the project root. The Snakemake rules declare the same inputs and outputs; a test holds the two
together.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from polygrain.config.budget import steps
from polygrain.config.compose import Config, choices, resolve, stamp
from polygrain.config.optional import shown_images, training_images
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.schema import check_config
from polygrain.provenance.errors import UserError, nearest

# Files of a packed data set by format. The shards of encoded images, which may be hundreds of gigabytes, are no claim
# of their own: the manifest names the hash of each, and they are packed from the image folder again rather than stored.
PACKED = {
    "pixels": ("images.npy", "labels.npy", "splits.npz", "manifest.json"),
    "encoded": ("index.npz", "labels.npy", "splits.npz", "manifest.json"),
}
PACKERS = {"pixels": "polygrain.data.prepare", "encoded": "polygrain.data.shards"}
VERBS = ("prepare", "pretrain", "features", "evaluate")
BESIDE = ("side", "local_side", "cost")  # keys of a data set on which packing does not depend


@dataclass(frozen=True)
class Stage:
    """One job: a verb applied to a directory."""

    verb: str
    directory: Path
    config: Config
    entries: tuple[str, ...]
    """Modules whose import closure is the code of this stage."""
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    minutes: float = 0.0
    """Declared minutes of one core."""
    memory: int = 0
    """Declared peak memory, MB."""

    @property
    def name(self) -> str:
        """A name that is unique in the workflow and legal in dvc.yaml."""
        return "-".join((self.verb, *self.directory.parts))

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self._input("config", "yaml")

    @property
    def code_path(self) -> Path:
        """The code hashes."""
        return self._input("code", "json")

    def _input(self, kind: str, suffix: str) -> Path:
        """Where a staleness file goes. Snakemake takes stock of a folder once and misses what is written there later.

        So the files of a run's stages are written together, and each table has a folder of its own.
        """
        folder = self.directory / kind if self.verb in VERBS else self.directory / kind / self.verb
        return folder / f"{self.verb}.{suffix}"

    @property
    def environment_path(self) -> Path:
        """The pins and the versions of what the code imports: a new typesetter makes no training stale."""
        return self._input("environment", "json")

    @property
    def sidecar(self) -> Path:
        """The record of how the outputs were made."""
        return Path("records", self.directory, f"{self.verb}.json")


def configuration(project: Project, run: Run) -> Config:
    """A run's resolved and checked configuration. Raises UserError on any fault in params/."""
    return _configuration(project, run.scale, run.dataset, run.method, run.variant, stamp(project.params))


@cache
def _configuration(project: Project, scale: str, dataset: str, method: str, variant: str, stamp: int) -> Config:
    run = Run(scale, dataset, method, variant, 0)
    config = resolve(run, project.params)
    check_config(str(run.path), config, project.schemas)
    return config


def stage_of(project: Project, verb: str, directory: str | Path) -> Stage:
    """The stage that a verb and a directory mean, from params/.

    Raises UserError when the directory does not fit the verb.
    """
    if verb == "prepare":
        config = configuration(project, Run("cpu", _dataset(directory), "random", "base", 0))
    else:
        run = Run.parse(directory)
        config = configuration(project, run)
    cost = config["cost"][verb]
    match verb:
        case "prepare":
            chosen = {key: value for key, value in config["dataset"].items() if key not in BESIDE}
        case "pretrain":
            kept = ("augmentation", "backbone", "input_size", "method", "optimizer", "pretrain", "statistics")
            chosen = {key: config[key] for key in kept}
            chosen |= {"dataset": run.dataset, "seed": run.seed, "steps": steps(config)}
            chosen["format"] = config["dataset"]["format"]
        case "features":
            names = evaluated(config, run)
            chosen = {"backbone": config["backbone"], "datasets": names}
            chosen["formats"] = {name: dataset_format(project.params, name) for name in names}
            chosen |= {"features": config["evaluate"]["features"], "statistics": config["statistics"]}
        case _:
            chosen = {"protocols": config["evaluate"]["protocols"]}
    return build_stage(verb, Path(directory), chosen, cost["minutes"], cost["memory"])


def frozen_stage(project: Project, verb: str, directory: str | Path) -> Stage:
    """The stage as written when the job graph was built: what a running job obeys, whatever params/ says now."""
    path = project.root / directory / "config" / f"{verb}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: not written; build through snakemake, or leave out --workflow")
    return build_stage(verb, Path(directory), yaml.safe_load(path.read_text()))


def build_stage(verb: str, directory: Path, config: Config, minutes: float = 0.0, memory: int = 0) -> Stage:
    """Entries and files of a stage follow from its configuration."""
    match verb:
        case "prepare":
            entries = [PACKERS[config["format"]], f"polygrain.data.readers.{_file(config['reader'])}"]
            inputs: list[Path] = []
            outputs = packed(directory.name, config["format"])
        case "pretrain":
            entries = ["polygrain.train.run", *_modules(config, "method", "backbone"), *training_images(config)]
            inputs = packed(config["dataset"], config["format"])
            outputs = [directory / "checkpoint.safetensors", directory / "metrics.jsonl"]
        case "features":
            entries = [
                "polygrain.evaluate.features",
                *_modules(config, "backbone"),
                *shown_images(config["formats"].values()),
            ]
            inputs = [
                directory / "checkpoint.safetensors",
                *(p for name in config["datasets"] for p in packed(name, config["formats"][name])),
            ]
            outputs = [directory / "features.safetensors"]
        case "evaluate":
            entries = [
                "polygrain.evaluate.run",
                *(f"polygrain.evaluate.{_file(name)}" for name in config["protocols"]),
            ]
            inputs = [directory / "features.safetensors"]
            outputs = [
                directory / "results" / f"{name}.{kind}" for name in config["protocols"] for kind in ("json", "npz")
            ]
        case _:
            raise UserError(f"no stage '{verb}'; there are {', '.join(VERBS)}")
    return Stage(verb, directory, config, tuple(entries), tuple(inputs), tuple(outputs), minutes, memory)


def run_stages(project: Project, run: Run) -> tuple[Stage, ...]:
    """The stages of one run, in order."""
    return tuple(stage_of(project, verb, run.path) for verb in VERBS[1:])


def evaluated(config: Config, run: Run) -> list[str]:
    """Data sets on which a run's features are judged: its own first."""
    return [run.dataset, *(name for name in config["evaluate"]["transfer"] if name != run.dataset)]


def packed(dataset: str, form: str) -> list[Path]:
    """The files of a packed data set of format `form`."""
    return [Path("data", dataset, name) for name in PACKED[form]]


def dataset_format(params: Path, name: str) -> str:
    """`pixels` or `encoded`, as params/dataset says. Raises UserError for a data set that does not exist."""
    known = choices(params, "dataset")
    if name not in known:
        raise UserError(f"no dataset '{name}'{nearest(name, known)}")
    return str(yaml.safe_load((params / "dataset" / f"{name}.yaml").read_text())["format"])


def datasets_in(params: Path, form: str) -> list[str]:
    """The data sets of one format."""
    return [name for name in choices(params, "dataset") if dataset_format(params, name) == form]


def _dataset(directory: str | Path) -> str:
    path = Path(directory)
    if path.parts[:1] != ("data",) or len(path.parts) != 2:
        raise UserError(f"{directory}: not a packed data set; it is data/NAME")
    return path.name


def _modules(config: Config, *kinds: str) -> list[str]:
    packages = {"method": "methods", "backbone": "backbones"}
    return [f"polygrain.{packages[kind]}.{_file(config[kind]['name'])}" for kind in kinds]


def _file(name: str) -> str:
    return str(name).replace("-", "_")

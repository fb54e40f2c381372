"""The stages that make data and runs: prepare, compose, pretrain, features, and one for each protocol."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from polygrain.config.budget import steps
from polygrain.config.compose import Config
from polygrain.config.kind import Kind
from polygrain.config.optional import augmented_images, shown_images, training_images
from polygrain.config.project import Project
from polygrain.config.resolved import check_protocol, configuration, dataset, evaluated, scenes
from polygrain.config.runs import Run
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import Stage

# Files of a packed data set by format. The shards of encoded images, which may be hundreds of gigabytes, are no claim
# of their own: the manifest names the hash of each, and they are packed from the image folder again rather than stored,
# by the first job that reads them (`without_shards`).
PACKED = {
    "pixels": ("images.npy", "labels.npy", "splits.npz", "manifest.json"),
    "encoded": ("index.npz", "labels.npy", "splits.npz", "manifest.json"),
}
COMPOSED = ("coco.zip", "voc.zip", "davis.zip", "manifest.json")
PACKERS = {"pixels": "polygrain.data.prepare", "encoded": "polygrain.data.shards"}
BESIDE = ("side", "local_side", "cost")  # keys of a data set on which packing does not depend
CHECKPOINT, METRICS, FROZEN = "checkpoint.safetensors", "metrics.jsonl", "features.safetensors"


def _place_data(target: Path) -> tuple[Path, str]:
    if target.parts[:1] != ("data",) or len(target.parts) != 2:
        raise UserError(f"{target}: not a packed data set; it is data/NAME")
    return target, "prepare"


def _prepare(project: Project, directory: Path, task: str) -> Stage:
    described = dataset(project, directory.name)
    chosen = {key: value for key, value in described.items() if key not in BESIDE}
    return _costing(_prepared(directory, task, chosen), described["cost"])


def _prepared(directory: Path, task: str, config: Config) -> Stage:
    entries = (PACKERS[config["format"]], f"polygrain.data.readers.{_module(config['reader'])}")
    outputs = packed(directory.name, config["format"])
    return Stage(task, task, directory, config, entries, (), outputs, (directory.name,))


def _place_scenes(target: Path) -> tuple[Path, str]:
    if target.parts[:1] != ("data",) or len(target.parts) != 2:
        raise UserError(f"{target}: not scenes; they are data/NAME, of params/scenes/NAME.yaml")
    return target, "compose"


def _compose(project: Project, directory: Path, task: str) -> Stage:
    described = scenes(project, directory.name)
    chosen = {key: value for key, value in described.items() if key != "cost"}
    return _costing(_composed(directory, task, chosen), described["cost"])


def _composed(directory: Path, task: str, config: Config) -> Stage:
    names = config["datasets"]
    inputs = tuple(path for name in names for path in packed(name, "pixels"))
    outputs = composed(directory.name)
    return Stage(
        task, task, directory, config, ("polygrain.data.scenes.run",), inputs, outputs, (directory.name, *names)
    )


def _place_run(task: str) -> Callable[[Path], tuple[Path, str]]:
    return lambda target: (Run.parse(target).path, task)


def _pretrain(project: Project, directory: Path, task: str) -> Stage:
    run = Run.parse(directory)
    config = configuration(project, run)
    kept = ("augmentation", "backbone", "input_size", "method", "optimizer", "pretrain", "statistics")
    chosen = {key: config[key] for key in kept}
    chosen |= {"dataset": run.dataset, "seed": run.seed, "steps": steps(config), "format": config["dataset"]["format"]}
    return _costing(_pretrained(directory, task, chosen), config["cost"][task])


def _pretrained(directory: Path, task: str, config: Config) -> Stage:
    return Stage(
        verb=task,
        task=task,
        directory=directory,
        config=config,
        entries=(
            "polygrain.train.run",
            f"polygrain.methods.{_module(config['method']['name'])}",
            _backbone(config),
            *training_images(config),
        ),
        inputs=packed(config["dataset"], config["format"]),
        outputs=(directory / CHECKPOINT, directory / METRICS),
        datasets=(config["dataset"],),
        device=config["pretrain"]["device"],
    )


def _features(project: Project, directory: Path, task: str) -> Stage:
    run = Run.parse(directory)
    config = configuration(project, run)
    chosen = {**_encoder(project, config, evaluated(config, run.dataset)), "features": config["evaluate"]["features"]}
    return _costing(_extracted(directory, task, chosen), config["cost"][task])


def _extracted(directory: Path, task: str, config: Config) -> Stage:
    return Stage(
        verb=task,
        task=task,
        directory=directory,
        config=config,
        entries=("polygrain.evaluate.features", *_showing(config)),
        inputs=(directory / CHECKPOINT, *_packed_all(config)),
        outputs=(directory / FROZEN,),
        datasets=tuple(config["datasets"]),
    )


def _place_protocol(target: Path) -> tuple[Path, str]:
    if len(target.parts) != 8 or target.parts[6] != "results":
        raise UserError(
            f"{target}: not a protocol of a run; it is runs/SCALE/DATASET/METHOD/VARIANT/seedN/results/NAME"
        )
    return Run.parse(Path(*target.parts[:6])).path, target.name.removesuffix(".json").removesuffix(".npz")


def _evaluate(project: Project, directory: Path, task: str) -> Stage:
    run = Run.parse(directory)
    config = configuration(project, run)
    check_protocol(project, task, f"{directory}/results/{task}")
    protocol = config["evaluate"]["protocols"][task]
    if not judges(protocol, run):
        raise UserError(f"{directory}/results/{task}: it judges runs of {', '.join(protocol['methods'])} only")
    names = _judged(str(directory / "results" / task), protocol["datasets"], evaluated(config, run.dataset))
    chosen: Config = {"protocol": task, "needs": protocol["needs"], "datasets": names, "values": protocol["values"]}
    if protocol.get("module"):
        chosen["module"] = protocol["module"]
    if protocol["needs"] != "features":
        # the data set of pre-training is opened, too: its statistics normalise every image
        shown = _encoder(project, config, list(dict.fromkeys([run.dataset, *names])))
        shown |= {"datasets": names, "features": config["evaluate"]["features"], "pretrained": run.dataset}
        chosen |= {**shown, "device": protocol["device"]}
    if protocol.get("scenes"):
        chosen["scenes"] = scenes(project, protocol["scenes"])["name"]
    return _costing(_judging(directory, task, chosen), protocol["cost"])


def judges(protocol: Config, run: Run) -> bool:
    """Whether a protocol can judge a run: it may name the methods that have what it needs."""
    return run.method in (protocol.get("methods") or [run.method])


def _judging(directory: Path, task: str, config: Config) -> Stage:
    if "scenes" in config:
        return _judging_on_scenes(directory, task, config)
    frozen = config["needs"] == "features"
    entries: tuple[str, ...] = ("polygrain.evaluate.run", _protocol(task, config))
    if not frozen:
        entries += "polygrain.evaluate.given", *_showing(config), *augmented_images(config["formats"].values())
    return Stage(
        verb="evaluate",
        task=task,
        directory=directory,
        config=config,
        entries=entries,
        inputs=(directory / FROZEN,) if frozen else (directory / CHECKPOINT, *_packed_all(config)),
        outputs=tuple(directory / name for name in results(task)),
        datasets=tuple(config["datasets"] if frozen else config["formats"]),
        device=config.get("device", "cpu"),
    )


def _judging_on_scenes(directory: Path, task: str, config: Config) -> Stage:
    """Of the data set of pre-training only the statistics are read, which every scene is normalised with."""
    names = (config["pretrained"], config["scenes"])
    return Stage(
        verb="evaluate",
        task=task,
        directory=directory,
        config=config,
        entries=("polygrain.evaluate.scenes.run", _protocol(task, config), _backbone(config)),
        inputs=(directory / CHECKPOINT, Path("data", names[0], "manifest.json"), *composed(names[1])),
        outputs=tuple(directory / name for name in results(task)),
        datasets=names,
        device=config["device"],
    )


def _judged(where: str, asked: str | list[str], extracted: list[str]) -> list[str]:
    """The data sets of a protocol among those that the run is judged on, the own one first."""
    if isinstance(asked, str):
        return {"own": extracted[:1], "transfer": extracted[1:], "all": extracted}[asked]
    for name in asked:
        if name not in extracted:
            raise UserError(
                f"{where}: data set '{name}' is not among those of this run ({', '.join(extracted)});"
                " add it to evaluate.transfer"
            )
    return list(asked)


def _encoder(project: Project, config: Config, names: list[str]) -> Config:
    """What shows images of some data sets to the run's encoder."""
    return {
        "backbone": config["backbone"],
        "datasets": names,
        "formats": {name: dataset(project, name)["format"] for name in names},
        "statistics": config["statistics"],
    }


def results(protocol: str) -> tuple[str, ...]:
    """The files of a protocol below its run."""
    return (f"results/{protocol}.json", f"results/{protocol}.npz")


def packed(name: str, form: str) -> tuple[Path, ...]:
    """The files of a packed data set of format `form`."""
    return tuple(Path("data", name, file) for file in PACKED[form])


def composed(name: str) -> tuple[Path, ...]:
    """The files of scenes."""
    return tuple(Path("data", name, file) for file in COMPOSED)


def without_shards(root: Path, stage: Stage) -> list[Path]:
    """Data sets of encoded images that a stage reads or makes and whose shards are not there."""
    folders = [path.parent for path in (*stage.inputs, *stage.outputs) if path.name == PACKED["encoded"][0]]
    return [folder for folder in folders if not (root / folder / "shards").is_dir()]


def _packed_all(config: Config) -> tuple[Path, ...]:
    return tuple(path for name, form in config["formats"].items() for path in packed(name, form))


def _protocol(task: str, config: Config) -> str:
    return f"polygrain.evaluate.{_module(config.get('module', task))}"


def _backbone(config: Config) -> str:
    return f"polygrain.backbones.{_module(config['backbone']['name'])}"


def _showing(config: Config) -> tuple[str, ...]:
    """The modules, loaded by name, that show images to the run's encoder."""
    return (_backbone(config), *shown_images(config["formats"].values()))


def _module(name: str) -> str:
    return name.replace("-", "_")


def _costing(stage: Stage, cost: dict[str, Any]) -> Stage:
    return replace(stage, minutes=cost["minutes"], memory=cost["memory"])


PREPARE = Kind(_place_data, _prepare, _prepared)
COMPOSE = Kind(_place_scenes, _compose, _composed)
PRETRAIN = Kind(_place_run("pretrain"), _pretrain, _pretrained, (CHECKPOINT, METRICS))
FEATURES = Kind(_place_run("features"), _features, _extracted, (FROZEN,))
EVALUATE = Kind(_place_protocol, _evaluate, _judging)

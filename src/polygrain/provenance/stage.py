"""One job of the workflow as one object: what it reads and writes, what decides its outputs, and what it costs.

Rules, dvc.yaml, `plan`, `trace`, `crate`, `record`, `restore` and `audit` take all file names of a stage from this
object. Paths are relative to the project root.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A verb applied to a target. Build one with `polygrain.config.stages`."""

    verb: str
    """The verb of the command line that does it: prepare, pretrain, features, evaluate or table."""
    task: str
    """Its name within its directory: the verb, or the protocol, or the table."""
    directory: Path
    """The packed data set, the run, or the folder of the table."""
    config: dict[str, Any] = field(hash=False)
    """The part of the configuration that decides the outputs."""
    entries: tuple[str, ...]
    """Modules whose import closure is the code of this stage; `run(stage)` of the first does the work."""
    inputs: tuple[Path, ...]
    """Outputs of other stages, and files that people write."""
    outputs: tuple[Path, ...]
    datasets: tuple[str, ...] = ()
    """Packed data sets that the outputs come from, also when they are read through features."""
    minutes: float = 0.0
    """Declared minutes of one core."""
    memory: int = 0
    """Declared peak memory, MB."""
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Its name in dvc.yaml and dvc.lock, unique in the workflow; `dvc pull NAME` fetches its outputs.

        A stage of a run is called `task-scale-dataset@method-variant-seedN`.
        """
        if not self.item:
            return _plain("-".join((self.task, *self.directory.parts)))
        scale, dataset = self.directory.parts[1:3]
        # stages of one group read the same data sets
        read = sorted({path.parts[1] for path in self.inputs if path.parts[0] == "data"})
        others = ("on", *read) if set(read) - {dataset} else ()
        return f"{_plain('-'.join((self.task, scale, dataset, *others)))}@{_plain(self.item)}"

    @property
    def item(self) -> str:
        """The part of its paths that `dvc.yaml` lists under `foreach`: method, variant and seed of a run."""
        return "/".join(self.directory.parts[3:]) if self.directory.parts[0] == "runs" else ""

    @property
    def metrics(self) -> tuple[Path, ...]:
        """The outputs that `dvc metrics show` prints: the results of a protocol."""
        return tuple(path for path in self.outputs if path.suffix == ".json") if self.verb == "evaluate" else ()

    @property
    def curves(self) -> tuple[Path, ...]:
        """The outputs that `dvc plots show` draws: the metrics of a training. A control has none: it takes no step."""
        return tuple(path for path in self.outputs if path.suffix == ".jsonl") if self.config.get("steps") else ()

    @property
    def target(self) -> Path:
        """What the verb is given: the directory where it is one job's alone, else the first output."""
        return self.directory if self.task == self.verb else self.outputs[0]

    @property
    def command(self) -> str:
        """What a person types to build the outputs."""
        return f"snakemake --cores all {self.outputs[0]}"

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self._decisive("config", "yaml")

    @property
    def code_path(self) -> Path:
        """The code hashes."""
        return self._decisive("code", "json")

    @property
    def environment_path(self) -> Path:
        """The pins and the versions of what the code imports: a new typesetter makes no training stale."""
        return self._decisive("environment", "json")

    @property
    def listing_path(self) -> Path:
        """What lies in the user's folder that a data set is packed from; of this machine, and on no record."""
        return self._decisive("source", "txt")

    def _decisive(self, kind: str, suffix: str) -> Path:
        """Where a file that decides staleness goes.

        Snakemake lists a folder once and does not see files that are written there later. So those of pretrain and
        features are written together, and each protocol and each table has a folder of its own.
        """
        folder = self.directory / kind if self.task == self.verb else self.directory / kind / self.task
        return folder / f"{self.task}.{suffix}"

    @property
    def dependencies(self) -> tuple[Path, ...]:
        """Every hashed input except the configuration, sorted: code, environment, data and outputs of other stages."""
        return tuple(sorted({self.code_path, self.environment_path, *self.inputs}))

    @property
    def manifests(self) -> tuple[Path, ...]:
        """The manifests of the data sets behind the outputs."""
        return tuple(Path("data", name, "manifest.json") for name in self.datasets)

    @property
    def sidecar(self) -> Path:
        """The record of how the outputs were made."""
        return Path("records", self.directory, f"{self.task}.json")

    @property
    def packed_listing(self) -> Path:
        """The record of the listing that the outputs were made from."""
        return self.sidecar.with_name("source.txt")

    @property
    def timing(self) -> Path:
        """The record of where the time went."""
        return self.sidecar.with_name("timing.jsonl")

    @property
    def state(self) -> Path:
        """Where a half-done run is kept."""
        return self.directory / "scratch" / "state.pt"


def makers(stages: Iterable[Stage]) -> dict[Path, Stage]:
    """Output -> the stage that makes it."""
    return {path: stage for stage in stages for path in stage.outputs}


def ancestry(stage: Stage, made: Mapping[Path, Stage]) -> list[Stage]:
    """The stage and everything behind it, nearest first, each once."""
    found = {stage.name: stage}
    waiting = [stage]
    while waiting:
        for path in waiting.pop(0).dependencies:
            maker = made.get(path)
            if maker is not None and maker.name not in found:
                found[maker.name] = maker
                waiting.append(maker)
    return list(found.values())


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """The stages with each one after those that make its inputs."""
    named = {stage.name: stage for stage in stages}
    made = makers(named.values())
    graph = {stage.name: [made[path].name for path in stage.dependencies if path in made] for stage in named.values()}
    return [named[name] for name in TopologicalSorter(graph).static_order()]


def to_run(stages: Sequence[Stage], absent: Set[Path], targets: Collection[str]) -> set[str]:
    """The names of the stages that Snakemake runs for the stages `targets` when the files `absent` are not there.

    A stage runs when a file of it is missing that a target needs or a running stage reads, and when a stage that it
    reads from runs: Snakemake does not look whether that one gave the same bytes again.
    """
    made = {path: stage.name for stage in stages for path in stage.outputs}
    reads = {stage.name: {path for path in stage.dependencies if path in made} for stage in stages}
    running = {stage.name for stage in stages if stage.name in targets and absent & set(stage.outputs)}
    before: set[str] | None = None
    while running != before:
        before = set(running)
        running |= {made[path] for name in before for path in reads[name] & absent}
        running |= {name for name, paths in reads.items() if any(made[path] in running for path in paths)}
    return running


def _plain(text: str) -> str:
    """With `-` for every character that DVC refuses in a name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in text)

"""One recorded run that is to be attested: what dvc.lock holds of it, and whether only its code differs now."""

from dataclasses import dataclass, replace
from pathlib import Path

from polygrain.config.runs import Run
from polygrain.provenance.attestations import Inputs, inputs_in, is_code, is_environment
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import Lock, Locked, changes
from polygrain.provenance.pipeline import parameters
from polygrain.provenance.stage import Stage


@dataclass(frozen=True)
class Subject:
    """A pretrain stage as it would run now, beside its record."""

    stage: Stage
    locked: Locked
    old: Inputs
    new: Inputs
    environment: Path
    """Where the recorded environment stood."""

    @property
    def twin(self) -> Run:
        """The same run at smoke scale, with the first seed: all seeds share it."""
        return replace(Run.parse(self.stage.directory), scale="smoke", seed=0)

    @property
    def outputs(self) -> dict[str, str]:
        """Recorded MD5 of each output."""
        return {path.as_posix(): self.locked.outputs[path.as_posix()] for path in self.stage.outputs}

    @property
    def recorded(self) -> dict[Path, str]:
        """Recorded MD5 of the two staleness files that may differ."""
        return {self.stage.code_path: self.old.code, self.environment: self.old.environment}


def find_subject(stage: Stage, lock: Lock, root: Path) -> Subject | None:
    """The stage with its record, by its outputs; None when dvc.lock has none. Its staleness files must be written."""
    locked = lock.find(stage)
    old = inputs_in(locked.dependencies) if locked else None
    if locked is None or old is None:
        return None
    new = Inputs(md5_file(root / stage.code_path), md5_file(root / stage.environment_path))
    return Subject(stage, locked, old, new, next(Path(name) for name in locked.dependencies if is_environment(name)))


def other_difference(subject: Subject, root: Path) -> str:
    """What differs from the record besides code and environment; empty when nothing does."""
    stage, locked = subject.stage, subject.locked
    name = stage.config_path.as_posix()
    for key, _, _ in changes(locked.parameters.get(name, {}), parameters(root / stage.config_path)):
        return f"{key} in {name} changed"
    before = {path: md5 for path, md5 in locked.dependencies.items() if not is_code(path) and not is_environment(path)}
    after = {path.as_posix() for path in stage.inputs}
    if set(before) != after:
        return f"{sorted(set(before) ^ after)[0]} is an input only of one of them"
    for path, md5 in before.items():
        if not (root / path).is_file():
            return f"{path} is not in place"
        if md5_file(root / path) != md5:
            return f"{path} changed"
    return ""

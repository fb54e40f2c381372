"""A small project with a real Snakemake, git and DVC: prepare -> two runs -> table."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from polygrain.provenance.checklock import find_problems
from polygrain.provenance.lock import CONFIGURATIONS, read_lock
from polygrain.provenance.restore import restore
from polygrain.provenance.stage import Stage

PREPARE = "data/toy/images.npy"
TABLE = "reports/table1.md"

# Each job's outputs are a pure function of the bytes of its inputs, so that a rebuild gives the same bytes.
# `reports/late.bin` has the bytes of the first output: DVC keeps one cached file for both.
JOB = """
import hashlib, pathlib, sys, types
from polygrain.provenance.sidecar import recorded

task, *paths = sys.argv[1:]
sidecar, config = map(pathlib.Path, paths[:2])
inputs, outputs = ([pathlib.Path(path) for path in group.split(",")] for group in paths[2:])
stage = types.SimpleNamespace(
    task=task, sidecar=sidecar, dependencies=inputs, outputs=outputs, manifests=(), config_path=config,
    code_path=config.with_name("code.json"), environment_path=pathlib.Path("inputs/environment.json"),
)
with recorded(stage):
    read = b"".join(path.read_bytes() for path in [config, *inputs])
    for path in outputs:
        same = str(path) in ("data/toy/images.npy", "reports/late.bin")
        path.write_text("same bytes" if same else f"# {path}\\n\\n{hashlib.sha256(read).hexdigest()}\\n")
"""


class Toy(Stage):
    """A stage whose names and places are shorter than those of the workflow."""

    @property
    def name(self) -> str:
        return super().name if self.task == CONFIGURATIONS else self.task

    @property
    def item(self) -> str:
        return ""

    @property
    def config_path(self) -> Path:
        return Path("inputs", self.task, "config.yaml")

    @property
    def code_path(self) -> Path:
        return Path("inputs", self.task, "code.json")

    @property
    def environment_path(self) -> Path:
        return Path("inputs/environment.json")

    @property
    def sidecar(self) -> Path:
        return Path("records", f"{self.task}.json")


def toy_jobs() -> list[Stage]:
    prepare = _toy("prepare", "toy", "data/toy", [], [PREPARE])
    runs = [
        _toy("pretrain", f"run-{n}", f"runs/{n}", [PREPARE], [f"runs/{n}/checkpoint.bin", f"runs/{n}/metrics.jsonl"])
        for n in "ab"
    ]
    table = _toy("table", "table1", "reports", [str(run.outputs[0]) for run in runs], [TABLE, "reports/late.bin"])
    return [table, *runs, prepare]


def _toy(verb: str, name: str, folder: str, inputs: Sequence[str], outputs: Sequence[str]) -> Stage:
    return Toy(verb, name, Path(folder), {}, (), tuple(map(Path, inputs)), tuple(map(Path, outputs)))


PUBLISHED = {Path(TABLE): Path("reports/published/table1.md")}


def snakefile(jobs: Sequence[Stage]) -> str:
    rules = ["rule all:\n    input: 'reports/table1.md'"]
    for job in jobs:
        arguments = [job.name, str(job.sidecar), str(job.config_path)]
        arguments += [",".join(map(str, paths)) for paths in (job.dependencies, job.outputs)]
        rules.append(
            f"rule {job.name.replace('-', '_')}:\n"
            f"    input: {[str(path) for path in (job.config_path, *job.dependencies)]}\n"
            f"    output: {[str(path) for path in job.outputs]}\n"
            f"    shell: '{sys.executable} job.py {' '.join(arguments)}'"
        )
    return "\n".join(rules) + "\n"


def call(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in `folder` away from the user's git, DVC and Snakemake settings."""
    names = {"NAME": "test", "EMAIL": "test@example.org"}
    identity = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in names.items()}
    env = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def dvc(folder: Path, *arguments: str) -> str:
    return call(folder, sys.executable, "-m", "dvc", *arguments).stdout


def new_repository(folder: Path) -> Path:
    call(folder, "git", "init", "--quiet")
    dvc(folder, "init", "--quiet")
    settings = "analytics = false", "check_update = false", "autostage = false"
    (folder / ".dvc/config").write_text("[core]\n" + "".join(f"    {line}\n" for line in settings))
    return folder


def commit_all(folder: Path) -> None:
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", "state")


def space_out(root: Path) -> None:
    """Set modification times a day apart along the graph, so that a wrong order cannot hide in one second."""
    moment = 1_600_000_000
    for path in sorted((root / "inputs").rglob("*")):
        os.utime(path, (moment, moment))
    for job in reversed(toy_jobs()):
        moment += 86_400
        for path in job.outputs:
            os.utime(root / path, (moment, moment))


def snakemake(root: Path, *arguments: str) -> str:
    # large checkpoints are compared by time only: without this, Snakemake compares small files by content
    options = ["--cores", "1", "--max-checksum-file-size", "0", *arguments]
    done = call(root, sys.executable, "-m", "snakemake", *options, "--", "all")
    return done.stdout + done.stderr


def planned(root: Path) -> set[str]:
    """The jobs that a dry run would execute."""
    lines = snakemake(root, "--dry-run").splitlines()
    rules = {line.split()[1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule "))}
    return {name.replace("_", "-") for name in rules} - {"all"}


def clone(source: Path, folder: Path, **settings: str) -> Path:
    """What another person has: git's files, and the inputs that are written at parse time."""
    call(source, "git", "clone", "--quiet", str(source), str(folder))
    if not (folder / "inputs").exists():
        shutil.copytree(source / "inputs", folder / "inputs")
    for name, value in settings.items():
        dvc(folder, "config", "--local", name.replace("_", "."), value)
    return folder


def restored(root: Path) -> dict[str, str]:
    """Restore all jobs; the verdict of each."""
    found = restore(toy_jobs(), root, lambda: None)
    return {name: result.outcome for name, result in found.items()}


def problems(root: Path, jobs: Sequence[Stage] = (), published: Mapping[Path, Path] = PUBLISHED) -> list[str]:
    """What check-lock finds, marks aside."""
    return [problem.line for problem in find_problems(jobs or toy_jobs(), root, published)]


def outputs(root: Path) -> dict[str, bytes]:
    return {str(path): (root / path).read_bytes() for job in toy_jobs() for path in job.outputs}


def edit(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new))


def stored_object(store: Path, root: Path, output: str) -> Path:
    """Where a remote or a cache keeps an output."""
    md5 = read_lock(root).makers[output].outputs[output]
    return store / "files/md5" / md5[:2] / md5[2:]


def damage(path: Path) -> None:
    """Change an object's bytes and nothing that its size, time or mode gives away."""
    before, content = path.stat(), path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[::-1])
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.read_bytes() != content

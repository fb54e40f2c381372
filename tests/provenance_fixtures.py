"""The toy project at three moments, built once per session."""

import shutil
import sys
from pathlib import Path

import pytest
from provenance_toy import (
    JOB,
    PUBLISHED,
    call,
    clone,
    commit_all,
    dvc,
    new_repository,
    snakefile,
    space_out,
    toy_jobs,
)

from polygrain.provenance.record import record


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after a Snakemake run, before anything is recorded."""
    root = new_repository(tmp_path_factory.mktemp("built"))
    (root / ".gitignore").write_text(
        "/data/\n/runs/\n/inputs/\n/records/\n/.snakemake/\n/reports/*\n!/reports/published/\n"
    )
    (root / "job.py").write_text(JOB)
    (root / "Snakefile").write_text(snakefile(toy_jobs()))
    for job in toy_jobs():
        (root / job.config_path).parent.mkdir(parents=True, exist_ok=True)
        (root / job.config_path).write_text(f"name: {job.name}\noptimizer:\n  lr: 0.05\n  betas: [0.9, 0.99]\n")
        (root / job.code_path).write_text(f'{{"polygrain.{job.name}": "0"}}\n')
    (root / "inputs/environment.json").write_text('{"packages": {}}\n')
    call(root, sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all")
    space_out(root)
    commit_all(root)
    return root


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    """A copy of the built project of its own."""
    return Path(shutil.copytree(built, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="session")
def _recorded(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(built, tmp_path_factory.mktemp("recorded") / "project", symlinks=True))
    record(toy_jobs(), root, PUBLISHED)
    commit_all(root)
    return root


@pytest.fixture
def recorded_project(_recorded: Path, tmp_path: Path) -> Path:
    """A copy of its own of the project after `record`, committed to git."""
    return Path(shutil.copytree(_recorded, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="session")
def store(_recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder remote that holds all that is recorded; tests must not change it."""
    folder = tmp_path_factory.mktemp("store")
    dvc(_recorded, "remote", "add", "--default", "--local", "store", str(folder))
    dvc(_recorded, "push", "--quiet")
    (_recorded / ".dvc/config.local").unlink()
    return folder


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """A private copy of the remote."""
    return Path(shutil.copytree(store, tmp_path / "store"))


@pytest.fixture
def fresh(_recorded: Path, tmp_path: Path) -> Path:
    """A clone in which nothing is built, without a remote."""
    return clone(_recorded, tmp_path / "fresh")

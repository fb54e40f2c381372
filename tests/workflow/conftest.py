"""Real checkouts for end-to-end tests: the files of this repository in a git repository of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = "reports/smoke-seeds1/table1.pdf"
CLAIMS = (
    "data/*/*.np[yz]",
    "data/*/manifest.json",
    "runs/**/*.safetensors",
    "runs/**/metrics.jsonl",
    "runs/**/results/*",
    "reports/smoke*/table1.*",
)


@dataclass(frozen=True)
class Checkout:
    """A checkout in a temporary folder, with commands that run in it."""

    root: Path

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), **variables}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(
                f"{command} gave {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}{self.logs()}"
            )
        return done

    def build(self, target: str = SMOKE, cores: int = 2, **variables: str) -> str:
        done = self.run("snakemake", "--cores", str(cores), target, **variables)
        return done.stdout + done.stderr

    def planned(self, target: str = SMOKE) -> dict[str, int]:
        """Jobs that a dry run would execute, by rule."""
        done = self.run("snakemake", "-n", "--cores", "1", target)
        jobs: dict[str, int] = {}
        counting = False
        for line in (done.stdout + done.stderr).splitlines():
            words = line.split()
            if words[:2] == ["job", "count"]:
                counting = True
            elif counting and len(words) == 2 and words[1].isdigit():
                jobs[words[0]] = int(words[1])
            elif counting and not words:
                break
        return {rule: count for rule, count in jobs.items() if rule != "total"}

    def claims(self) -> dict[str, bytes]:
        files = {path for pattern in CLAIMS for path in self.root.glob(pattern) if path.is_file()}
        return {str(path.relative_to(self.root)): path.read_bytes() for path in sorted(files)}

    def logs(self) -> str:
        return "".join(f"\n--- {path}\n{path.read_text()[-1500:]}" for path in self.root.glob("logs/**/*.log"))


def make_checkout(root: Path) -> Checkout:
    """Copy every file that git tracks or would track, and commit them in a fresh repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    checkout = Checkout(root)
    checkout.run("git", "init", "-q", "-b", "main")
    checkout.run("git", "config", "user.name", "tester")
    checkout.run("git", "config", "user.email", "tester@localhost")
    checkout.run("git", "add", "-A")
    checkout.run("git", "commit", "-q", "-m", "start")
    return checkout


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh checkout in which nothing is built; tests must not build in it."""
    return make_checkout(tmp_path_factory.mktemp("fresh"))


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Checkout], last: str) -> Checkout:
    """A checkout that test processes side by side share: the first of them makes it, `last` is its last file."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root /= name
    with FileLock(root.with_suffix(".lock")):
        if not (root / last).is_file():
            shutil.rmtree(root, ignore_errors=True)
            make(root)
    return Checkout(root)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the smoke table built on two cores; tests must not change it."""

    def make(root: Path) -> Checkout:
        checkout = make_checkout(root)
        checkout.build()
        return checkout

    return shared(tmp_path_factory, "built", make, SMOKE)


@pytest.fixture(scope="session")
def recorded(built: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of it after `record`, nothing committed; tests must not change it."""

    def make(root: Path) -> Checkout:
        checkout = Checkout(Path(shutil.copytree(built.root, root, symlinks=True)))
        checkout.run("polygrain", "record", SMOKE)
        return checkout

    return shared(tmp_path_factory, "recorded", make, f"reports/published/{Path(SMOKE).parent.name}/table1.pdf")


@pytest.fixture
def copy_of_built(built: Checkout, tmp_path: Path) -> Callable[[], Checkout]:
    """A private copy of the built checkout, with its modification times."""

    def copy() -> Checkout:
        shutil.copytree(built.root, tmp_path / "copy", symlinks=True)
        return Checkout(tmp_path / "copy")

    return copy

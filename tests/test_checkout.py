"""What git does to a checkout: line ends, and links where outputs would be."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def git(where: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=where, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone on a machine whose git turns line ends into CRLF by default."""
    place = tmp_path_factory.mktemp("crlf") / "clone"
    git(ROOT, "-c", "core.autocrlf=true", "clone", "--quiet", "--no-local", ".", str(place), "-c", "core.autocrlf=true")
    return place


def test_every_tracked_file_has_the_bytes_that_git_holds(clone: Path):
    changed = [name for name in git(clone, "ls-files", "--eol").splitlines() if "w/crlf" in name or "w/mixed" in name]
    assert not changed
    for name in ("README.md", "dvc.lock", "reports/published/table1.csv"):
        stored = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=clone, check=True, capture_output=True).stdout
        assert (clone / name).read_bytes() == stored


@pytest.mark.parametrize(
    "name", ["data", "runs", "inputs", "records", "logs", "benchmarks", "reports/table1.pdf", ".venv"]
)
def test_a_link_in_place_of_outputs_is_not_offered_to_git(clone: Path, name: str):
    (clone / name).symlink_to("/elsewhere")
    assert git(clone, "status", "--porcelain", "--", name) == ""

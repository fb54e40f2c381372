"""The glue of `polygrain crate`: folders, sources, and what is said when there is nothing to describe."""

import json
from pathlib import Path

import pytest

from polygrain.audit.write_crate import evidence_of, published_crate, sources_of, write_crates
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.provenance.errors import UserError

REPOSITORY = Project(Path(__file__).resolve().parents[2])


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """This checkout without anything built or recorded."""
    for name in ("params", "workflow", "src", "requirements.lock", "pyproject.toml", "Snakefile", ".git"):
        (tmp_path / name).symlink_to(REPOSITORY.root / name)
    return Project(tmp_path)


def test_a_crate_of_nothing_is_refused_in_one_line(clone):
    with pytest.raises(UserError, match=r"not here, and in no record; build it, or run `polygrain restore`"):
        write_crates(clone, ["reports/smoke-seeds1/table1.pdf"])
    assert not (clone.root / "reports").exists()


def test_published_crates_lie_beside_the_published_tables():
    assert published_crate(Path("reports")) == Path("reports/published/ro-crate-metadata.json")
    assert published_crate(Path("reports/smoke")) == Path("reports/published/smoke/ro-crate-metadata.json")


def test_raw_files_come_from_the_manifest(clone):
    stage = stage_of(clone, "prepare", "data/fashion-mnist")
    assert sources_of(clone, stage) == []
    (clone.root / stage.directory).mkdir(parents=True)
    manifest = {"raw": {"b": "1" * 64, "a": "0" * 64}, "source": "S", "licence": "L"}
    (clone.root / stage.directory / "manifest.json").write_text(json.dumps(manifest))
    found = [(source.name, source.sha256, source.description, source.licence) for source in sources_of(clone, stage)]
    assert found == [("a", "0" * 64, "S", "L"), ("b", "1" * 64, "S", "L")]


def test_gathering_evidence_writes_nothing(clone):
    stage = stage_of(clone, "prepare", "data/fashion-mnist")
    before = sorted(clone.root.iterdir())
    evidence = evidence_of(clone, [stage])
    assert evidence.content(stage.config_path) is not None
    assert evidence.content(stage.outputs[0]) is None
    assert sorted(clone.root.iterdir()) == before

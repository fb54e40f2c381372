"""`check-lock` in a clone without data: each way to drift gives its own line; stale marks excuse some."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from provenance_toy import PREPARE, PUBLISHED, TABLE, problems, snakemake, toy_jobs

from polygrain.provenance.checklock import (
    Problem,
    _ancestry_of_tables,
    _reasons,
    is_marked_stale,
    mark_stale,
    mark_tables,
    verdict,
)
from polygrain.provenance.errors import UserError

COPY = PUBLISHED[Path(TABLE)]


@pytest.fixture
def clone(recorded_project: Path) -> Path:
    """What CI has: git's files and the inputs that are written at parse time, no data, no outputs."""
    for folder in ("data", "runs", "records", ".dvc/cache"):
        shutil.rmtree(recorded_project / folder)
    for output in toy_jobs()[0].outputs:
        (recorded_project / output).unlink()
    return recorded_project


def _replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return edit


def test_holds_with_and_without_the_outputs(recorded_project: Path, clone: Path) -> None:
    for root in (recorded_project, clone):
        assert problems(root) == []
        assert verdict(toy_jobs(), root, PUBLISHED).state == "holds"


CONFIG = "inputs/run-a/config.yaml"
STALE_EDITS = {
    "value": (_replace(CONFIG, "0.05", "0.1"), [f"run-a: optimizer.lr in {CONFIG} was 0.05, now it is 0.1;"]),
    "type": (_replace(CONFIG, "[0.9, ", "['0.9', "), ["run-a: optimizer.betas in"]),
    "new key": (
        _replace(CONFIG, "name", "extra: 1\nname"),
        [f"run-a: extra in {CONFIG} was absent, now it is 1;"],
    ),
    "code": (_replace("inputs/run-a/code.json", "0", "1"), ["run-a: inputs/run-a/code.json changed since"]),
    "environment": (
        _replace("inputs/environment.json", "{}", '{"torch": "9"}'),
        [f"{name}: inputs/environment.json changed since" for name in ("run-a", "run-b", "table1", "toy")],
    ),
    "pipeline": (_replace("dvc.yaml", "all", "1"), ["dvc.yaml: differs from the generated text"]),
    "no pipeline": (lambda root: (root / "dvc.yaml").unlink(), ["dvc.yaml: differs from the generated text"]),
    "lock of one more": (
        _replace("dvc.lock", "  run-a:\n", "  gone:\n    cmd: old\n  run-a:\n"),
        ["gone: in dvc.lock, but no job any more"],
    ),
    "command": (
        _replace("dvc.lock", "all runs/a", "1 runs/a"),
        ["run-a: its command was 'snakemake --cores 1 runs/a/checkpoint.bin', now"],
    ),
    "no lock": (lambda root: (root / "dvc.lock").unlink(), ["dvc.lock: missing or empty"]),
}


@pytest.mark.parametrize("name", STALE_EDITS)
def test_what_is_stale_is_told_and_can_be_marked(clone: Path, name: str) -> None:
    edit, expected = STALE_EDITS[name]
    edit(clone)
    lines = problems(clone)
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    before = verdict(toy_jobs(), clone, PUBLISHED)
    assert before.state == "fails"
    assert before.lines[:-1] == tuple(lines)
    assert before.lines[-1].startswith(f"{COPY}: does not say that it is stale")
    assert mark_tables(toy_jobs(), clone, PUBLISHED) == [COPY]
    after = verdict(toy_jobs(), clone, PUBLISHED)
    assert after.state == "marked stale"
    assert after.lines == tuple(lines)


def _upstream(root: Path) -> None:
    """Give the lock another MD5 for the data than the runs say they used."""
    text = (root / "dvc.lock").read_text()
    start = text.index(f"outs:\n    - path: {PREPARE}")
    end = text.index("md5: ", start) + len("md5: ")
    (root / "dvc.lock").write_text(text[:end] + "f" * 32 + text[end + 32 :])


def _put_back(root: Path) -> None:
    (root / PREPARE).parent.mkdir(parents=True)
    (root / PREPARE).write_text("edited")


def test_other_bytes_of_the_same_inputs_are_told_from_an_edit(recorded_project: Path) -> None:
    """As if run-a's job gave other bytes on this machine: its record vouches for them; then the table is made again."""
    root = recorded_project
    (job,) = (job for job in toy_jobs() if job.name == "run-a")
    (root / job.outputs[0]).unlink()
    (root / job.outputs[0]).write_text("other bytes")
    said = json.loads((root / job.sidecar).read_text())
    said["outputs"][str(job.outputs[0])]["sha256"] = hashlib.sha256(b"other bytes").hexdigest()
    (root / job.sidecar).write_text(json.dumps(said))
    (line,) = verdict(toy_jobs(), root, PUBLISHED, lambda stage: f"; {stage.name} ran elsewhere").lines
    same = (
        "its job made other bytes here than dvc.lock holds of the same inputs; run-a ran elsewhere; look for the cause"
    )
    assert line.startswith(f"{job.outputs[0]}: {same}")
    snakemake(root)
    lines = problems(root)
    assert lines[0].startswith(f"{job.outputs[0]}: its job made other bytes here")
    assert f"{TABLE}: rebuilt from another {job.outputs[0]} than recorded;" in "\n".join(lines)


BROKEN_EDITS = {
    "chain": (_upstream, [f"run-{name}: used another {PREPARE} than toy made, according to dvc.lock" for name in "ab"]),
    "output": (_put_back, [f"{PREPARE}: edited by hand or rebuilt since it was recorded"]),
    "copy": (_replace(str(COPY), "table1", "table2"), [f"{COPY}: is not the {TABLE} of dvc.lock"]),
    "no copy": (lambda root: (root / COPY).unlink(), [f"{COPY}: missing"]),
    "no input": (
        lambda root: (root / "inputs/run-a/code.json").unlink(),
        ["run-a: inputs/run-a/code.json is missing, so it cannot be compared"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_EDITS)
def test_what_is_broken_is_told_and_no_mark_excuses_it(clone: Path, name: str) -> None:
    edit, expected = BROKEN_EDITS[name]
    edit(clone)
    lines = problems(clone)
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    if (clone / COPY).is_file():
        _replace("inputs/run-b/code.json", "0", "1")(clone)
        assert mark_tables(toy_jobs(), clone, PUBLISHED) == [COPY]
    result = verdict(toy_jobs(), clone, PUBLISHED)
    assert result.state == "fails"
    assert list(result.lines) == lines


def test_jobs_that_changed_are_told(clone: Path) -> None:
    table, *rest = toy_jobs()
    one_more = replace(rest[0], task="run-c", outputs=(Path("runs/c/out.bin"),))
    changed = replace(
        table,
        inputs=(*table.inputs[:-1], one_more.outputs[0]),
        outputs=(table.outputs[0], Path("reports/table1.csv")),
    )
    shutil.copytree(clone / "inputs/run-b", clone / "inputs/run-c")
    assert [line.split(";")[0] for line in problems(clone, [changed, *rest, one_more])] == [
        "dvc.yaml: differs from the generated text",
        "run-c: not in dvc.lock",
        "table1: depends on runs/c/out.bin, which dvc.lock does not list",
        "table1: depended on runs/b/checkpoint.bin according to dvc.lock, now it does not",
        "table1: reports/late.bin is an output only in dvc.lock",
        "table1: reports/table1.csv is an output only now",
    ]


def test_only_tables_that_descend_from_the_change_need_a_mark(clone: Path) -> None:
    """Two tables, one per run; run-a is stale."""
    table, *rest = toy_jobs()
    tables = [
        replace(
            table,
            task=f"table-{n}",
            inputs=(Path(f"runs/{n}/checkpoint.bin"),),
            outputs=(Path(f"{n}.md"),),
        )
        for n in "ab"
    ]
    published = {Path("a.md"): Path("published/a.md"), Path("b.md"): Path("published/b.md")}
    ancestry = _ancestry_of_tables([*rest, *tables], published)
    assert ancestry[Path("published/a.md")] == {"table-a", "run-a", "toy"}
    found = [
        Problem("a changed", "run-a", stale=True),
        Problem("broken", "run-b", stale=False),
        Problem("no table's", "figure", stale=True),
        Problem("everybody's", None, stale=True),
    ]
    assert _reasons(found, ancestry) == {
        Path("published/a.md"): ["a changed", "no table's", "everybody's"],
        Path("published/b.md"): ["no table's", "everybody's"],
    }


def test_a_mark_without_a_reason_fails_and_goes_away(clone: Path) -> None:
    before = (clone / COPY).read_bytes()
    mark_stale(clone / COPY, ["something"])
    result = verdict(toy_jobs(), clone, PUBLISHED)
    assert result.state == "fails"
    assert result.lines == (f"{COPY}: marked stale without a reason; run `polygrain record`",)
    assert mark_tables(toy_jobs(), clone, PUBLISHED) == []
    assert (clone / COPY).read_bytes() == before
    assert verdict(toy_jobs(), clone, PUBLISHED).state == "holds"


def test_without_a_published_table_nothing_excuses_staleness(clone: Path) -> None:
    _replace("inputs/run-a/code.json", "0", "1")(clone)
    result = verdict(toy_jobs(), clone, {})
    assert result.state == "fails"
    assert len(result.lines) == 1


@pytest.mark.parametrize("body", ["# Table\n\n| a |\n", "\n\nblank first\n", "one line", ""])
def test_marks_replace_each_other_and_leave_the_table_alone(tmp_path: Path, body: str) -> None:
    path = tmp_path / "table.md"
    path.write_text(body)
    mark_stale(path, ["first reason"])
    assert path.read_text().startswith("> **Stale:** ")
    assert "first reason\n\n" + body in path.read_text()
    mark_stale(path, ["other reason", "another"])
    assert path.read_text().count("Stale") == 1
    assert "2 differences, the first: other reason\n\n" + body in path.read_text()
    assert is_marked_stale(path)
    mark_stale(path, [])
    assert path.read_text() == body
    assert not is_marked_stale(path)


@pytest.mark.parametrize("text", ["<<<<<<< ours\n", "stages: 3\n", "schema: '2.0'\n", "a: [\n"])
def test_a_broken_lock_is_one_line(clone: Path, text: str) -> None:
    (clone / "dvc.lock").write_text(text)
    with pytest.raises(UserError, match=r"dvc\.lock: (not|has merge conflict)") as caught:
        problems(clone)
    assert "\n" not in str(caught.value)

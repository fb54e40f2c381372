"""What an attestation is worth: for check-lock, restore, record and audit."""

import json
from pathlib import Path

import pytest
from provenance_toy import PUBLISHED, edit, planned, problems, restored, snakemake, toy_jobs
from written_past import RESULT, Past, honest, kinds, md5

from polygrain.provenance.attestations import (
    FILE,
    Attestation,
    Inputs,
    attested,
    behind,
    chain,
    read_attestations,
    write_attestations,
)
from polygrain.provenance.errors import UserError
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import read_lock
from polygrain.provenance.record import clear_attestations, record
from polygrain.provenance.restore import stamp

CODE, ENVIRONMENT = "inputs/run-a/code.json", "inputs/environment.json"


def attestation(old: str, new: str, outputs: dict[str, str] | None = None) -> Attestation:
    made = {"runs/a/checkpoint": "bytes"} if outputs is None else outputs
    return Attestation(made, Inputs(old, "e"), Inputs(new, "e"), "commit", {"steps": 100})


def attest_edit(root: Path) -> None:
    """Change the code of run-a and attest that its outputs stay."""
    stage = read_lock(root).stages["run-a"]
    edit(root, CODE, '"0"', '"1"')
    new = Inputs(md5_file(root / CODE), md5_file(root / ENVIRONMENT))
    old = Inputs(stage.dependencies[CODE], stage.dependencies[ENVIRONMENT])
    write_attestations(root, [Attestation(stage.outputs, old, new, "commit", {})])


def test_the_file_is_the_same_bytes_for_any_order_and_a_broken_one_is_named(tmp_path: Path) -> None:
    one, two = attestation("a", "b"), attestation("b", "c")
    write_attestations(tmp_path, [one, two])
    content = (tmp_path / FILE).read_bytes()
    assert sorted(read_attestations(tmp_path), key=lambda item: item.old.code) == [one, two]
    write_attestations(tmp_path, [two, one])
    assert (tmp_path / FILE).read_bytes() == content
    (tmp_path / FILE).write_text('{"outputs": {}}\n')
    with pytest.raises(UserError, match=r"attestations.jsonl:1: not an attestation"):
        read_attestations(tmp_path)
    write_attestations(tmp_path, [])
    assert read_attestations(tmp_path) == ()
    assert not (tmp_path / FILE).exists()


def test_attestations_lead_from_one_code_to_another_also_in_steps() -> None:
    known = [attestation("a", "b"), attestation("b", "c"), attestation("x", "c", {"runs/b/checkpoint": "bytes"})]
    outputs = {"runs/a/checkpoint": "bytes"}
    a, b, c = (Inputs(code, "e") for code in "abc")
    assert [chain(known, outputs, a, other) for other in (b, c, Inputs("c", "other"))] == [True, True, False]
    assert not chain(known, outputs, c, a)
    assert not chain(known, {"runs/a/checkpoint": "other bytes"}, a, b)
    assert [behind(known, "runs/a/checkpoint", present) for present in (a, b, c)] == [0, 1, 2]
    then = {"x/code.json": "a", "x/environment.json": "e", "data": "1"}
    assert attested(known, outputs, then, {**then, "x/code.json": "b"}) == {"x/code.json", "x/environment.json"}
    assert attested(known, outputs, then, then) == frozenset()
    assert attested(known, outputs, then, {**then, "x/code.json": "x"}) == frozenset()


def test_an_attested_run_is_no_difference_and_comes_back(recorded_project: Path) -> None:
    root = recorded_project
    edit(root, CODE, '"0"', '"1"')
    assert any(CODE in line for line in problems(root))
    edit(root, CODE, '"1"', '"0"')
    attest_edit(root)
    assert problems(root) == []
    assert planned(root) == {"run-a", "table1"}  # Snakemake knows only times
    stamp(toy_jobs(), root)
    assert planned(root) == set()
    (root / "runs/a/checkpoint.bin").unlink()
    assert restored(root)["run-a"] == "restored"
    # another parameter is another run, whatever is attested of its code
    edit(root, "inputs/run-a/config.yaml", "0.05", "0.1")
    assert restored(root)["run-a"] == "stale"


def test_an_attested_run_is_recorded_and_one_that_was_built_again_needs_no_attestation(recorded_project: Path) -> None:
    root = recorded_project
    attest_edit(root)
    assert clear_attestations(toy_jobs(), root) == 0
    stamp(toy_jobs(), root)
    record(toy_jobs(), root, PUBLISHED)
    assert read_lock(root).stages["run-a"].dependencies[CODE] == md5_file(root / CODE)
    assert len(read_attestations(root)) == 1
    snakemake(root, "--forceall")
    assert clear_attestations(toy_jobs(), root) == 1
    assert read_attestations(root) == ()


def test_audit_calls_it_attested_and_never_explains_other_bytes_by_it(tmp_path: Path) -> None:
    extra = {"inputs/a/environment.json": md5("e")}
    result = {RESULT: md5("result")}
    said = Attestation(result, Inputs(md5("one"), md5("e")), Inputs(md5("two"), md5("e")), "commit", {})
    write_attestations(tmp_path, [said])
    file = {FILE.as_posix(): (tmp_path / FILE).read_text()}
    first = honest(code="1", code_hash="one", result="result", extra=extra)
    same = honest(code="2", code_hash="two", result="result", extra=extra)
    other = honest(code="2", code_hash="two", result="other", extra=extra)
    assert json.loads(file[FILE.as_posix()])["outputs"] == result

    def verdict(name: str, *states: dict[str, str]) -> str | None:
        past = Past(tmp_path / name)
        for files in states:
            past.commit(files)
        return kinds(past.audit()).get(RESULT)

    assert verdict("a", first, same | file) == "attested"
    assert verdict("b", first, same) is None  # unchanged, and nothing is said of it
    assert verdict("c", first, other) == "explained"
    assert verdict("d", first, other | file) == "unexplained"

"""Every verdict of the audit on histories written by hand, and attacks that must not pass."""

from pathlib import Path
from typing import Any

import pytest
from provenance_toy import call
from written_past import COPY, RESULT, TABLE, Past, audit_of, change, entry, found, honest, kinds, lock_text, md5

from polygrain.audit.explain import braced, closing_lines, entry_lines, reasons
from polygrain.audit.verdicts import Audit
from polygrain.provenance.checklock import mark_stale


@pytest.fixture
def past(tmp_path: Path) -> Past:
    return Past(tmp_path / "past")


def _of(past: Past, *states: dict[str, str]) -> Audit:
    for files in states:
        past.commit(files)
    return past.audit()


def _why(audit: Audit, output: str, number: int = -1) -> str:
    changes = {change.output: change for change in audit.entries[number].changes}
    return "; ".join(reasons(changes[output], changes))


def test_the_first_commit_is_new_and_one_without_claims_is_no_entry(past: Past) -> None:
    audit = _of(past, {"README": "x"}, honest(), {**honest(), "README": "y"}, honest(source="CODE = '1'  # remark\n"))
    assert len(audit.entries) == 1
    assert set(kinds(audit).values()) == {"new"}
    assert audit.holds
    assert list(closing_lines(audit))[-1] == "every change is explained"


def test_a_parameter_explains_what_is_below_it_and_nothing_else(past: Past) -> None:
    audit = _of(past, honest(0.1), honest(0.2))
    assert kinds(audit) == {RESULT: "explained", TABLE: "explained"}
    assert audit.entries[-1].unchanged == 1
    assert _why(audit, RESULT) == "lr 0.1 -> 0.2"
    assert _why(audit, TABLE) == RESULT
    assert audit.holds


def test_changed_code_names_its_sources_and_a_command_its_words(past: Past) -> None:
    audit = _of(past, honest(), honest(code="2"), honest(code="2", command="make run --fast", result="other"))
    assert "inputs/a/code.json (src/loss.py)" in _why(audit, RESULT, 1)
    assert audit.entries[1].findings == ()
    # nothing in params or src says that the command should change
    assert kinds(audit)[RESULT] == "unexplained"
    assert "command 'make run' -> 'make run --fast', REFUTED" in _why(audit, RESULT)


def test_a_command_that_the_sources_can_have_changed_explains(past: Past) -> None:
    changed = honest(code="2", command="make run --fast", code_hash="hash of code 1", result="other")
    audit = _of(past, honest(), changed)
    assert kinds(audit)[RESULT] == "explained"
    assert audit.holds


def test_a_result_that_changed_alone_is_unexplained_also_when_all_hashes_agree(past: Past) -> None:
    audit = _of(past, honest(), honest(result="better"))
    assert kinds(audit) == {RESULT: "unexplained", TABLE: "explained"}
    assert "recorded other bytes from the same inputs" in _why(audit, RESULT)
    assert _why(audit, TABLE) == f"{RESULT} (itself UNEXPLAINED)"
    assert not audit.holds
    assert f"HEAD still holds {RESULT}" in "\n".join(closing_lines(audit))
    printed = "\n".join(entry_lines(audit.entries[-1]))
    assert f"UNEXPLAINED {RESULT}: " in printed
    assert "1 unchanged, 1 explained, 1 unexplained" in printed


def test_a_repaired_result_returns_and_history_stays_guilty(past: Past) -> None:
    audit = _of(past, honest(), honest(result="better"), honest())
    assert kinds(audit) == {RESULT: "returned", TABLE: "returned"}
    assert change(audit, RESULT).earlier == audit.states[0].commit
    assert [change.output for change in audit.unexplained] == [RESULT]
    assert "no longer" not in "\n".join(closing_lines(audit))
    assert "HEAD holds none of them any more" in "\n".join(closing_lines(audit))


def test_what_was_said_once_is_not_said_again(past: Past) -> None:
    audit = _of(past, honest(), honest(result="better"), {**honest(result="better"), "params/a.yaml": "lr: 0.1\n\n"})
    assert len(audit.entries) == 2


def test_a_reverted_edit_returns_and_other_bytes_from_the_old_inputs_do_not(past: Past) -> None:
    audit = _of(past, honest(0.1), honest(0.2), honest(0.1))
    assert kinds(audit) == {RESULT: "returned", TABLE: "returned"}
    assert audit.holds
    other = Past(past.root.parent / "other")
    audit = _of(other, honest(0.1), honest(0.2), honest(0.1, result="other"))
    assert kinds(audit)[RESULT] == "unexplained"
    assert change(audit, RESULT).earlier == audit.states[0].commit


def test_bytes_that_stayed_while_the_inputs_went_back_are_unexplained(past: Past) -> None:
    audit = _of(past, honest(0.1), honest(0.2), honest(0.1, result="result 0.2 1"))
    assert kinds(audit)[RESULT] == "unexplained"
    assert change(audit, RESULT).earlier == audit.states[0].commit


def test_bytes_that_stayed_under_new_inputs_are_unchanged(past: Past) -> None:
    audit = _of(past, honest(0.1), honest(0.2, result="result 0.1 1"))
    assert kinds(audit) == {}
    assert audit.entries[-1].unchanged == 3
    assert audit.holds


def test_a_renamed_stage_is_the_same_stage(past: Past) -> None:
    audit = _of(past, honest(), honest(name="pretrain-a"), honest(name="pretrain-a", result="better"))
    assert kinds(audit, 1) == {}
    assert kinds(audit, 2)[RESULT] == "unexplained"


def test_removed_outputs_are_listed_and_cannot_come_back_changed(past: Past) -> None:
    def without_run(files: dict[str, str]) -> dict[str, str]:
        start, end = files["dvc.lock"].index("  run-a:"), files["dvc.lock"].index("  table:")
        return {**files, "dvc.lock": files["dvc.lock"][:start] + files["dvc.lock"][end:]}

    audit = _of(past, honest(), without_run(honest()), honest(result="better"))
    assert kinds(audit, 1) == {RESULT: "removed"}
    assert kinds(audit, 2)[RESULT] == "unexplained"


def test_a_lock_that_contradicts_itself_is_said_once(past: Past) -> None:
    audit = _of(past, honest(), honest(0.2, used="result 0.1 1"), honest(0.3, used="result 0.1 1", code="1"))
    lines = [line for kind, line in found(audit) if kind == "inconsistent"]
    assert len(lines) == 2  # the used file is the same, the made one is not
    assert f"table: used {RESULT} {md5('result 0.1 1')[:8]}, but run-a made {md5('result 0.2 1')[:8]}" == lines[0]
    again = Past(past.root.parent / "again")
    twice = honest(0.2, used="result 0.1 1")
    assert len(found(_of(again, honest(), twice, {**twice, COPY: twice[COPY] + "x"}))) == 2  # and one of the copy


def test_a_published_copy_must_be_the_recorded_bytes(past: Past, tmp_path: Path) -> None:
    copy = tmp_path / "table.md"
    copy.write_text(honest()[COPY])
    mark_stale(copy, ["run-a: changed"])
    stale = {**honest(), COPY: copy.read_text()}
    assert stale[COPY].startswith("> **Stale")
    more = {"reports/published/x.md": "y", "reports/published/crate.json": "a record, no output"}
    audit = _of(past, honest(), stale, {**honest(), COPY: "better\n"}, {**honest(), **more})
    assert found(audit) == [
        ("published", f"{COPY}: is not the {TABLE} of dvc.lock"),
        ("published", "reports/published/x.md: dvc.lock lists no reports/x.md"),
    ]
    assert not audit.holds
    assert [len(entry.findings) for entry in audit.entries] == [0, 0, 1, 1]


def test_a_merge_may_take_either_side_or_stages_of_both(past: Past) -> None:
    first = past.commit(honest())
    left = past.commit(honest(0.2), first)
    right = past.commit({**honest(), "README": "x"}, first)
    past.commit({**honest(0.2), "README": "x"}, right, left)
    audit = past.audit()
    assert kinds(audit) == {RESULT: "merged", TABLE: "merged"}
    assert change(audit, RESULT).earlier in [state.commit for state in audit.states if state.commit.subject == "state"]
    assert _why(audit, RESULT).startswith("taken from the side of ")
    assert audit.holds


def test_a_merge_cannot_bring_new_bytes_or_cross_inputs_of_one_side_with_bytes_of_the_other(past: Past) -> None:
    first = past.commit(honest())
    left = past.commit(honest(0.2), first)
    right = past.commit(honest(0.3), first)
    past.commit(honest(0.3, result="result 0.2 1"), right, left)
    audit = past.audit()
    crossed = next(entry for entry in audit.entries if entry.of("unexplained"))
    assert [change.output for change in crossed.of("unexplained")] == [RESULT]
    assert len(audit.unexplained) == 1
    assert not audit.holds


def test_a_merge_that_was_built_anew_is_explained_by_its_inputs(past: Past) -> None:
    first = past.commit(honest())
    left = past.commit(honest(0.2), first)
    right = past.commit(honest(code="2"), first)
    past.commit(honest(0.2, code="2"), left, right)
    audit = past.audit()
    assert kinds(audit) == {RESULT: "explained", TABLE: "explained"}
    assert audit.holds


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "code hash": ({"code_hash": "forged"}, "inputs/a/code.json changed, but git holds the same src here as in"),
    "code hash under a comment": ({"code_hash": "forged", "source": "# new\nCODE = '1'\n"}, "the same src"),
    "parameter": ({"lr_said": 0.7}, "inputs/a/config.yaml changed, but git holds the same params here"),
    "parameter of another type": ({"lr_said": "0.1"}, "the same params"),
    "another dependency": ({"extra": {"runs/a/more.json": md5("x")}}, "the same params and src"),
    "command": ({"command": "make run again"}, "the same params and src"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_explanation_is_refuted_and_explains_nothing(past: Past, name: str) -> None:
    edited, words = FORGED[name]
    audit = _of(past, honest(), honest(result="better", **edited))
    assert kinds(audit) == {RESULT: "unexplained", TABLE: "explained"}
    assert [kind for kind, _ in found(audit)] == ["refuted"]
    assert words in found(audit)[0][1]
    assert "REFUTED" in _why(audit, RESULT)


def test_a_forged_reason_is_found_even_if_it_is_laid_down_a_commit_before(past: Past) -> None:
    audit = _of(past, honest(), honest(code_hash="forged"), honest(code_hash="forged too", result="better"))
    assert kinds(audit, 1) == {}
    assert [kind for kind, _ in found(audit)] == ["refuted", "refuted"]
    assert kinds(audit, 2)[RESULT] == "unexplained"


def test_a_true_reason_beside_a_forged_one_explains_and_the_forged_one_still_fails(past: Past) -> None:
    audit = _of(past, honest(), honest(0.2, code_hash="forged"))
    assert kinds(audit)[RESULT] == "explained"
    assert not audit.holds


def test_an_edit_may_be_committed_before_it_is_recorded(past: Past) -> None:
    edited = {**honest(), "src/loss.py": "CODE = '2'\n"}
    audit = _of(past, honest(), edited, honest(code="2"))
    assert kinds(audit)[RESULT] == "explained"
    assert audit.holds


def test_an_input_that_git_holds_must_have_the_bytes_that_the_lock_says(past: Past) -> None:
    def with_source(text: str, said: str, result: str) -> dict[str, str]:
        return {**honest(extra={"params/x.csv": md5(said)}, result=result), "params/x.csv": text}

    audit = _of(past, with_source("1", "1", "a"), with_source("2", "2", "b"), with_source("2", "3", "c"))
    assert [set(kinds(audit, number).values()) for number in (1, 2)] == [{"explained"}, {"unexplained", "explained"}]
    assert found(audit) == [("refuted", found(audit)[0][1])]
    assert "params/x.csv has other bytes in this commit" in found(audit)[0][1]
    first = Past(past.root.parent / "first")
    assert [kind for kind, _ in found(_of(first, with_source("1", "2", "a")))] == ["refuted"]


def test_a_broken_lock_is_a_verdict_of_its_own_and_the_next_is_judged_by_the_last_good_one(past: Past) -> None:
    audit = _of(past, honest(), {**honest(), "dvc.lock": "<<<<<<< HEAD\nschema: '2.0'\n"}, honest(result="better"))
    assert [kind for kind, _ in found(audit)] == ["broken"]
    assert "dvc.lock is not valid YAML" in found(audit)[0][1]
    assert kinds(audit)[RESULT] == "unexplained"


def test_a_shallow_clone_says_where_it_begins(past: Past, tmp_path: Path) -> None:
    for lr in (0.1, 0.2, 0.3):
        past.commit(honest(lr))
    call(tmp_path, "git", "clone", "--quiet", "--depth", "2", f"file://{past.write()}", "shallow")
    audit = audit_of(tmp_path / "shallow")
    assert [set(kinds(audit, number).values()) for number in (0, 1)] == [{"new"}, {"explained"}]
    line = next(iter(closing_lines(audit)))
    assert line.startswith(f"shallow clone: nothing before {audit.states[0].commit.short} was audited")


def test_seeds_and_sibling_outputs_are_printed_together(past: Past) -> None:
    def lock(epochs: int) -> dict[str, str]:
        stages = {
            f"evaluate-seed{seed}": {
                "cmd": "x",
                "params": {"p.yaml": {"epochs": epochs, "long": [epochs] * 50}},
                "outs": [entry(f"runs/seed{seed}/results/{name}", md5(f"{name} {epochs}")) for name in ("k", "l")],
            }
            for seed in (0, 1)
        }
        return {"dvc.lock": lock_text(stages)}

    audit = _of(past, lock(1), lock(2))
    lines = list(entry_lines(audit.entries[-1]))
    assert lines[-1] == "    explained runs/seed{0,1}/results/{k,l}: epochs 1 -> 2; long"
    assert braced(["reports/a.md", "reports/b.md", "runs/seed0/x"]) == "reports/{a.md,b.md} runs/seed0/x"

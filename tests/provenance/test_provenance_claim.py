"""The claim id: golden, order free, and moved by every part."""

import hashlib
import json

import pytest

from polygrain.provenance.claim import PARTS, claim_id


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


RUNS = {f"runs/cpu/toy/{name}/default/seed0": {part: _hash(name + part) for part in PARTS} for name in "ab"}


def test_is_the_hash_of_the_sorted_runs() -> None:
    text = json.dumps(RUNS, sort_keys=True, indent=2) + "\n"
    assert claim_id(RUNS) == _hash(text) == "629a53c394868480ad777f69317e9d6205e49c4253f006ba618c90cfa7d1d70c"


def test_order_does_not_matter() -> None:
    assert claim_id({path: dict(reversed(RUNS[path].items())) for path in reversed(RUNS)}) == claim_id(RUNS)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("path", RUNS)
def test_every_part_of_every_run_matters(path: str, part: str) -> None:
    assert claim_id({**RUNS, path: {**RUNS[path], part: _hash("other")}}) != claim_id(RUNS)


def test_the_set_of_runs_and_their_paths_matter() -> None:
    first, second = RUNS
    ids = {
        claim_id(RUNS),
        claim_id({first: RUNS[first]}),
        claim_id({first: RUNS[second], second: RUNS[first]}),
    }
    assert len(ids) == 3


@pytest.mark.parametrize("hashes", [{"code": _hash("")}, {**dict.fromkeys(PARTS, _hash("")), "time": _hash("")}])
def test_other_parts_are_refused(hashes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs exactly the hashes"):
        claim_id({"runs/x": hashes})


def test_no_runs_and_no_hashes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        claim_id({})
    with pytest.raises(ValueError, match="data is no SHA-256"):
        claim_id({"runs/x": {**dict.fromkeys(PARTS, _hash("")), "data": "none"}})

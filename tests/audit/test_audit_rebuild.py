"""Stored bytes hashed again, and one stage made again in a scratch clone, with real git, DVC and Snakemake."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from provenance_toy import PREPARE, PUBLISHED, call, commit_all, toy_jobs

from polygrain.audit.cache import examine, objects_of
from polygrain.audit.locks import read_history
from polygrain.audit.rebuild import Rebuilt, rebuild
from polygrain.audit.repository import Repository
from polygrain.provenance.compare import compare_bytes
from polygrain.provenance.dvccommand import cache_folder, object_path
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.record import record
from polygrain.provenance.scratch import scratch_clone

METRICS = "runs/a/metrics.jsonl"


@pytest.fixture
def tracked(recorded_project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The recorded project with its inputs in git, as nothing writes them at parse time here."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    call(recorded_project, "git", "add", "--force", "inputs")
    call(recorded_project, "git", "commit", "--quiet", "--message", "inputs")
    return recorded_project


def _examined(root: Path) -> dict[str, str]:
    """MD5 -> state of its object."""
    with Repository(root) as repository:
        objects = objects_of(read_history(repository))
    read: list[int] = []
    cache = cache_folder(root)
    examined: dict[str, str] = {item.md5: state for item, state in examine(cache, objects, read.append)}
    assert sum(read) == sum(path.stat().st_size for md5 in examined if (path := object_path(cache, md5)).exists())
    return examined


def test_each_object_of_every_lock_is_whole_corrupt_or_missing(recorded_project: Path) -> None:
    root = recorded_project
    first, old = _examined(root), md5_file(root / METRICS)
    assert set(first.values()) == {"whole"}
    _replace_metrics(root, "another build\n")
    record(toy_jobs(), root, PUBLISHED)
    commit_all(root)
    with Repository(root) as repository:
        objects = {item.md5: item for item in objects_of(read_history(repository))}
    assert set(objects) == {*first, md5_file(root / METRICS)}
    assert [item.md5 for item in objects.values() if not item.current] == [old]
    place = object_path(cache_folder(root), old)
    place.chmod(0o644)
    place.write_text("rotten")
    assert {md5: state for md5, state in _examined(root).items() if state != "whole"} == {old: "corrupt"}
    place.unlink()
    assert {md5: state for md5, state in _examined(root).items() if state != "whole"} == {old: "missing"}


def _replace_metrics(root: Path, text: str) -> None:
    """Other bytes, with a record that fits them."""
    (root / METRICS).unlink()
    (root / METRICS).write_text(text)
    sidecar = root / "records/run-a.json"
    content = json.loads(sidecar.read_text())
    content["outputs"][METRICS]["sha256"] = sha256_file(root / METRICS)
    sidecar.write_text(json.dumps(content))


JSON = b'{"a": {"top1": 0.5, "n": 10}, "name": "x"}'


@pytest.mark.parametrize(
    ("output", "recorded", "rebuilt", "verdict", "words"),
    [
        ("r.json", JSON, JSON, "identical", ""),
        ("r.json", JSON, JSON.replace(b"0.5", b"0.5005"), "within tolerance", "a.top1: recorded 0.5, rebuilt 0.5005"),
        ("r.json", JSON, JSON.replace(b"0.5", b"0.502"), "different", "a.top1: recorded 0.5, rebuilt 0.502"),
        ("r.json", JSON, JSON.replace(b"10", b"10.009"), "within tolerance", "a.n"),
        ("r.json", JSON, JSON.replace(b'"x"', b'"y"'), "different", "name: recorded x, rebuilt y"),
        ("r.json", JSON, JSON.replace(b'"name": "x"', b'"other": "x"'), "different", "absent"),
        ("r.json", JSON, JSON.replace(b"10", b"true"), "different", "a.n"),
        ("r.json", JSON.replace(b"10", b"1"), JSON.replace(b"10", b"true"), "different", "recorded 1, rebuilt True"),
        ("r.json", JSON, b"{", "other bytes", ""),
        ("r.json", JSON, JSON + b"\n", "within tolerance", ""),
        ("m.jsonl", b'{"loss": 1.0}\n{"loss": 2.0}\n', b'{"loss": 1.0}\n{"loss": 2.1}\n', "different", "line 2 loss"),
        ("m.jsonl", b'{"loss": 1.0}\n', b'{"loss": 1.0}\n{"loss": 2.1}\n', "different", "absent"),
        ("t.csv", b"a,b\n1,2.0\n", b"a,b\n1,2.0001\n", "within tolerance", "line 2 field 2"),
        ("t.csv", b"a,b\n1,2.0\n", b"a,c\n1,2.0\n", "different", "recorded b, rebuilt c"),
        ("x.npz", b"1", b"2", "other bytes", ""),
    ],
)
def test_two_versions_are_compared_by_bytes_then_by_numbers(
    output: str, recorded: bytes, rebuilt: bytes, verdict: str, words: str
) -> None:
    compared = compare_bytes(output, recorded, rebuilt)
    assert compared.verdict == verdict
    assert words in "; ".join(compared.differences)


def test_the_verdict_on_a_stage_is_that_of_its_worst_output() -> None:
    def verdict(*pairs: tuple[bytes, bytes]) -> str:
        names = ("r.json", "s.json", "x.npz")
        outputs = tuple(compare_bytes(name, *pair) for name, pair in zip(names, pairs, strict=False))
        return Rebuilt(outputs, (), ()).verdict

    same, near, far = (b"1.0", b"1.0"), (b"1.0", b"1.0001"), (b"1.0", b"2.0")
    assert verdict(same, same, same) == "identical"
    assert verdict(same, near, far) == "within tolerance"  # the last one holds no numbers
    assert verdict(same, far, same) == "different"
    assert verdict(same, same, far) == "different"


def test_an_honest_stage_is_rebuilt_alone_with_the_same_bytes(tracked: Path, tmp_path: Path) -> None:
    (tracked / "job.py").write_text("raise SystemExit('the tree is not what is audited')")
    (tracked / PREPARE).unlink()  # it is still in the cache
    result = rebuild(tracked, METRICS)
    assert result.verdict == "identical"
    assert {compared.output for compared in result.outputs} == {"runs/a/checkpoint.bin", METRICS}
    assert (result.inputs, result.circumstances) == ((), ())
    assert not (tracked / PREPARE).exists()
    assert not list((tmp_path / "scratch").iterdir())


def test_an_edited_result_a_forged_input_and_another_machine_show(tracked: Path) -> None:
    lock, sidecar = tracked / "dvc.lock", tracked / "records/run-a.json"
    true, record_before = md5_file(tracked / METRICS), sidecar.read_text()
    _replace_metrics(tracked, '{"loss": 0.5}\n')
    forged = json.loads(sidecar.read_text())
    sidecar.write_text(record_before)
    text = lock.read_text().replace(true, md5_file(tracked / METRICS))
    text = text.replace("lr: 0.05", "lr: 0.06")
    text = text.replace(md5_file(tracked / "inputs/run-a/code.json"), "f" * 32)
    lock.write_text(text)
    commit_all(tracked)
    assert rebuild(tracked, METRICS).circumstances is None
    forged["machine"]["threads"] = 99
    forged["machine"]["packages"]["torch"] = "1.0"
    sidecar.write_text(json.dumps(forged))
    result = rebuild(tracked, METRICS)
    assert result.verdict == "different"
    assert {compared.output: compared.verdict for compared in result.outputs}["runs/a/checkpoint.bin"] == "identical"
    assert "inputs/run-a/code.json" in result.inputs
    assert "optimizer.lr in inputs/run-a/config.yaml: recorded 0.06, HEAD gives 0.05" in result.inputs
    assert result.circumstances is not None
    said = "; ".join(result.circumstances)
    assert "packages torch: recorded 1.0, here" in said
    assert "threads: recorded 99, here" in said


def test_what_cannot_be_rebuilt_is_one_line(tracked: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs/a/metrics\.json: no output of dvc\.lock at HEAD; did you mean"):
        rebuild(tracked, "runs/a/metrics.json")
    for output in (PREPARE, "reports/late.bin"):  # both have the same bytes
        (tracked / output).unlink()
    object_path(cache_folder(tracked), _locked_md5(tracked, PREPARE)).unlink()
    with pytest.raises(UserError, match=r"data/toy/images\.npy: the bytes .* neither in this tree nor in the cache"):
        rebuild(tracked, METRICS)
    assert not list((tmp_path / "scratch").iterdir())


def _locked_md5(root: Path, output: str) -> str:
    with Repository(root) as repository:
        return read_history(repository)[-1].lock.makers[output].outputs[output]


def test_a_job_that_fails_gives_its_last_words(tracked: Path, tmp_path: Path) -> None:
    (tracked / "job.py").write_text("raise SystemExit('no more')")
    commit_all(tracked)
    with pytest.raises(UserError, match=rf"{METRICS}: could not be rebuilt"):
        rebuild(tracked, METRICS)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rebuild_leaves_nothing(tracked: Path, tmp_path: Path, number: signal.Signals) -> None:
    """In a process of its own; the job under Snakemake hangs until it is stopped."""
    (tracked / "job.py").write_text(
        "import os, pathlib, time\npathlib.Path(os.environ['PID_FILE']).write_text(str(os.getpid()))\ntime.sleep(300)\n"
    )
    commit_all(tracked)
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom polygrain.audit.rebuild import rebuild\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try:\n    rebuild(Path({str(tracked)!r}), {METRICS!r})\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    pid_file = tmp_path / "pid"
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "PID_FILE": str(pid_file)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    _wait(lambda: pid_file.is_file() and pid_file.read_text() != "")
    process.send_signal(number)
    assert process.wait(300) == 130
    assert not list((tmp_path / "scratch").iterdir())
    _wait(lambda: not Path(f"/proc/{pid_file.read_text()}").exists())


def _wait(condition: object) -> None:
    deadline = time.monotonic() + 300
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_a_scratch_clone_has_the_commit_and_works_outside_the_main_thread(tracked: Path) -> None:
    seen: list[str] = []

    def clone() -> None:
        with scratch_clone(tracked, "HEAD~1") as folder:
            seen.append(call(folder, "git", "rev-parse", "HEAD").stdout)

    (tracked / "job.py").write_text("dirty")
    thread = threading.Thread(target=clone)
    thread.start()
    thread.join()
    assert seen == [call(tracked, "git", "rev-parse", "HEAD~1").stdout]

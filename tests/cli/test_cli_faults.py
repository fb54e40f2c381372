"""A fault of the machine is one line that names the file, the reason and the remedy."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polygrain.cli import describe
from polygrain.cli.faults import explain
from polygrain.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = ["plan", "reports/table1.pdf"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.EROFS, "x", "runs/a/lock"),
            "runs/a/lock: read-only file system; mount it writable, or work in a clone that is",
        ),
        (
            OSError(errno.EACCES, "x", b"runs/a"),
            "runs/a: permission denied; work as a user who may, or in a clone of your own",
        ),
        (
            OSError(errno.EIO, "x"),
            "runs/b: input/output error; look at the disk (dmesg), then run the same command again",
        ),
        (
            OSError(errno.EXDEV, "x", "a", None, "b"),
            "a -> b: invalid cross-device link; correct that and run the same command again",
        ),
        (
            ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "runs/b: no space left on device; free some space and run the same command again",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "runs/b: cannot allocate memory; close other programs, or run fewer jobs at a time (--cores), and run the"
            " same command again",
        ),
    ],
)
def test_a_fault_names_file_reason_and_remedy(error, line):
    assert explain(error, "runs/b") == line


@pytest.mark.parametrize("error", [ValueError("wrong shape"), RuntimeError("size mismatch"), KeyError("a")])
def test_a_mistake_of_ours_is_not_taken_for_a_fault(error, monkeypatch):
    def fail(*_: object) -> str:
        raise error

    assert explain(error, "runs/b") is None
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(describe, "plan_table", fail)
    with pytest.raises(type(error)):
        main(PLAN)


def test_a_verb_that_meets_a_fault_says_one_line_and_exits_with_2():
    code = (
        "import sys\nfrom polygrain.cli import describe\nfrom polygrain.cli.main import main\n"
        f"def fail(*_): raise OSError({errno.EROFS}, 'x', 'params/x.yaml')\n"
        f"describe.plan_table = fail\nsys.exit(main({PLAN}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "polygrain plan: params/x.yaml: read-only file system; mount it writable, or work in a clone that is\n"
    )


def test_output_that_nobody_takes_is_no_traceback():
    """A full disk behind a redirection is told in one line; a reader that has seen enough is not told anything."""
    command = [sys.executable, "-m", "polygrain.cli.main", *PLAN]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("polygrain plan: reports/table1.pdf: no space left on device; free some space")
    assert len(done.stderr.splitlines()) == 1
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([*command[:-1], "x.pdf"], cwd=REPOSITORY, stderr=full)
    assert done.returncode == 2
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")

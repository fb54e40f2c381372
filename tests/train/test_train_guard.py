import os
import signal
import subprocess
import sys
import time

import pytest

from polygrain.provenance.errors import UserError
from polygrain.train.guard import locked


def test_a_second_process_on_the_same_run_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom polygrain.train.guard import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "scratch")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=f"process {holder.pid} is already working on this run"),
        locked(tmp_path / "scratch"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "scratch"):
        pass


def test_a_job_ends_with_the_process_that_started_it(tmp_path):
    child = (
        "import os, time\nfrom polygrain.train.guard import exit_with_parent\nexit_with_parent(0.05)\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    parent = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()\n"
    started = subprocess.Popen(
        [sys.executable, "-c", parent, child], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    job = int(started.stdout.readline())
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 20
    while _alive(job) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(job)


def _alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

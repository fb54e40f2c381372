"""Statements that a fork runs before its verb, so that its machine is at fault, for that process alone."""

import subprocess
from pathlib import Path

_MOUNT = """
import ctypes, os, shutil, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, options):
    if libc.mount(source, target, kind, flags, options):
        raise OSError(ctypes.get_errno(), "mount", target)
if libc.unshare(0x20000):
    raise OSError(ctypes.get_errno(), "unshare")
mount(None, b"/", None, 0x44000, None)
"""
_SMALL = """
aside = tempfile.mkdtemp()
shutil.copytree({folder!r}, aside, dirs_exist_ok=True)
mount(b"tmpfs", os.fsencode(os.path.abspath({folder!r})), b"tmpfs", 0, b"size={size}")
shutil.copytree(aside, {folder!r}, dirs_exist_ok=True)
shutil.rmtree(aside)
"""
_READ_ONLY = """
here = os.fsencode(os.getcwd())
mount(here, here, None, 0x5000, None)
mount(None, here, None, 0x1021, None)
os.chdir(here)
"""
_NO_PRIVILEGE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
for place in range(3):
    sets[place] &= ~0b1110  # to write and read what permissions forbid
libc.capset(header, sets)
"""
_LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
_BACK = """
import time, tqdm.std
real, asked = time.time, 0
def back():
    global asked
    asked += 1
    return real() - 3600 * (asked // 3)
time.time = tqdm.std.time = back
"""
PAGE = 4096


def mounting() -> bool:
    """Whether this process may mount file systems in a namespace of its own."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def files_up_to(size: int) -> str:
    """No file grows beyond `size` bytes: any write may stop half-way."""
    return _LIMIT.format(size)


def disk_with(root: Path, folder: Path, left: int) -> str:
    """A file system of its own at `folder`, with what lies there and `left` more bytes."""
    sizes = [path.stat().st_size for path in (root / folder).rglob("*") if path.is_file()]
    used = sum(-(-size // PAGE) * PAGE for size in sizes)
    return _MOUNT + _SMALL.format(folder=str(folder), size=used + left // PAGE * PAGE + PAGE)


def read_only() -> str:
    """The project mounted read-only."""
    return _MOUNT + _READ_ONLY


def unprivileged() -> str:
    """No right beyond what permissions give, also for root."""
    return _NO_PRIVILEGE


def clock_going_back() -> str:
    """The clock is put back by an hour at every third look."""
    return _BACK

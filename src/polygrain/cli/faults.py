"""Faults of the machine in one line: which file, what happened, what to do. Bugs of polygrain keep their traceback.

Jobs write under temporary names and rename, so after any of these faults each file under a final name is complete, and
the same command continues where it stopped.
"""

import errno
import os
import re

AGAIN = "run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"free some space and {AGAIN}",
    errno.EDQUOT: f"free some space, or have the quota raised, and {AGAIN}",
    errno.EROFS: "mount it writable, or work in a clone that is",
    errno.EACCES: "work as a user who may, or in a clone of your own",
    errno.EPERM: "work as a user who may, or in a clone of your own",
    errno.EIO: f"look at the disk (dmesg), then {AGAIN}",
    errno.ESTALE: f"mount the file system again and {AGAIN}",
    errno.EMFILE: f"raise the limit of open files (ulimit -n) and {AGAIN}",
    errno.ENFILE: f"close other programs and {AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) and {AGAIN}",
    errno.ENOMEM: f"close other programs, or run fewer jobs at a time (--cores), and {AGAIN}",
    errno.EISDIR: f"a folder stands where a file belongs; move it away and {AGAIN}",
    errno.ENOTDIR: f"a file stands where a folder belongs; move it away and {AGAIN}",
    errno.ELOOP: f"a link leads to itself; remove it and {AGAIN}",
}
# how libraries written in Rust and C++ report what Python reports as OSError and MemoryError
_RUST = re.compile(r"\(os error (\d+)\)")
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory", re.IGNORECASE)


def explain(error: Exception, subject: str) -> str | None:
    """One line for a fault of the machine; None for any other exception. `subject`: what the verb works on."""
    number = _number(error)
    if number is None:
        return None
    name = getattr(error, "filename", None)
    target = getattr(error, "filename2", None)
    where = " -> ".join(os.fsdecode(part) for part in (name, target) if isinstance(part, str | bytes | os.PathLike))
    remedy = _REMEDIES.get(number, f"correct that and {AGAIN}")
    return f"{where or subject}: {os.strerror(number).lower()}; {remedy}"


def _number(error: Exception) -> int | None:
    """The system's number of the fault."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError):
        return error.errno
    found = _RUST.search(str(error))
    if found:
        return int(found[1])
    return errno.ENOMEM if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) else None

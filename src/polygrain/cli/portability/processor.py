"""Which processor a process sees, natively or under the emulator, and how to start an interpreter on another one."""

import ctypes
import mmap
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

EMULATOR = "qemu-x86_64"
NATIVE = "native"
# AVX2 in front of all others: what the pinned instruction set asks for
_FEATURES = {"AVX2": (7, 1, 5), "FMA": (1, 2, 12), "AVX-512": (7, 1, 16), "AMX": (7, 3, 24)}  # leaf, register, bit
_MODEL = (0x80000002, 0x80000003, 0x80000004)
# push rbx; mov r8,rdx; mov eax,edi; mov ecx,esi; cpuid; store eax, ebx, ecx, edx at r8; pop rbx; ret
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")


@dataclass(frozen=True)
class Processor:
    """What the instruction CPUID answers."""

    vendor: str
    model: str
    features: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.vendor}, {self.model}, {' '.join(self.features)}"


def processor() -> Processor:
    """Ask CPUID itself: /proc/cpuinfo shows the machine's processor to an emulated process too.

    Raises UserError where the machine is no x86-64.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise UserError(f"this machine is {platform.machine()}: the claim is about x86-64 processors; run it on one")
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_CPUID)
        answers = {leaf: _ask(page, leaf) for leaf in (0, 1, 7, *_MODEL)}
    _, b, c, d = answers[0]
    model = [word for leaf in _MODEL for word in answers[leaf]]
    has = tuple(name for name, (leaf, word, bit) in _FEATURES.items() if answers[leaf][word] >> bit & 1)
    return Processor(_text([b, d, c]), _text(model), has)


def _ask(page: mmap.mmap, leaf: int) -> tuple[int, ...]:
    """What CPUID leaves in eax, ebx, ecx and edx."""
    start = ctypes.c_char.from_buffer(page)
    registers = (ctypes.c_uint32 * 4)()
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(start))
    call(leaf, 0, ctypes.addressof(registers))
    return tuple(registers)


def _text(words: Sequence[int]) -> str:
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0").decode("ascii", "replace").strip()


def command(cpu: str, module: str, *arguments: str) -> list[str]:
    """How to run `python -m module` natively or on an emulated processor.

    The interpreter itself, not its launcher in a virtual environment: what a launcher starts is not emulated. Raises
    UserError where the emulator is missing.
    """
    interpreter = [str(Path(sys.executable).resolve()), "-m", module, *arguments]
    return interpreter if cpu == NATIVE else [emulator(), "-cpu", cpu, *interpreter]


def variables(source: Path) -> dict[str, str]:
    """The environment of such a process: the pins, for it must not start itself again, and where its packages are."""
    paths = sysconfig.get_paths()
    packages = dict.fromkeys((str(source), paths["purelib"], paths["platlib"]))
    return {**os.environ, **PINS, "PYTHONPATH": os.pathsep.join(packages)}


def emulator() -> str:
    """The emulator's path. Raises UserError where it is not installed."""
    found = shutil.which(EMULATOR)
    if found is None:
        raise UserError(f"{EMULATOR} is not installed; on Debian and Ubuntu: apt-get install qemu-user")
    return found

"""Facts of the running process and its machine that an auditor compares when two builds differ in bits."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from polygrain.provenance.environment import PACKAGES, installed_version
from polygrain.provenance.pins import PINS

# Instruction sets that numeric libraries choose kernels by.
INSTRUCTIONS = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
_LIBRARIES = ("Math Kernel Library", "MKL-DNN", "OpenMP")


def machine() -> dict[str, Any]:
    """Describe this process's Python, processor, packages and pins; torch and numpy are asked only when loaded.

    `instructions` is what the processor offers, `capability` what torch's and numpy's kernels were chosen for: with
    the pins in force the second is AVX2 whatever the first says.
    """
    cpu = _cpuinfo()
    flags = set(cpu.get("flags", "").split())
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "processor": cpu.get("model name") or platform.processor(),
        "vendor": cpu.get("vendor_id", ""),
        "processors": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "capability": {
            "torch": str(torch.backends.cpu.get_cpu_capability()) if torch else None,
            # the instruction sets above its baseline that numpy dispatches to
            "numpy": numpy.show_config(mode="dicts")["SIMD Extensions"].get("found", []) if numpy else None,
        },
        "libraries": _libraries(torch.__config__.show()) if torch else None,
        "accelerator": str(torch.cuda.get_device_name()) if torch and torch.cuda.is_initialized() else None,
        "threads": int(torch.get_num_threads()) if torch else int(threads) if threads.isdigit() else None,
        "packages": {name: installed_version(name) for name in PACKAGES},
        "pins": {name: os.environ.get(name) for name in PINS},
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing on systems without it."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _libraries(configuration: str) -> list[str]:
    """Versions of the kernel libraries inside torch, as torch words them."""
    lines = (line.strip(" -") for line in configuration.splitlines())
    return [line for line in lines if any(name in line for name in _LIBRARIES) and len(line) < 200]

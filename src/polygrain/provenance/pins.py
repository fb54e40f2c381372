"""Settings that decide bits: pinned in the environment before any numeric library is imported.

Libraries read these variables while they load, so a process that lacks one starts itself again with all
of them set. One thread per job: parallel work comes from running jobs side by side, and a sum over two
threads is another sum. The instruction set is capped at AVX2, which every x86-64 server of the last ten
years has, so that a newer processor does not choose other kernels. MKL has to be capped lower: it uses AVX2 on Intel's
processors only.
"""

import os
import sys

PINS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "LC_ALL": "C.UTF-8",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_DYNAMIC": "FALSE",
    "MKL_NUM_THREADS": "1",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "NVIDIA_TF32_OVERRIDE": "0",
    "OMP_DYNAMIC": "FALSE",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "1640995200",
    "TZ": "UTC",
}


def pinned() -> bool:
    """Whether this process was started with every pin in place."""
    return all(os.environ.get(name) == value for name, value in PINS.items())


def pin_process(arguments: list[str]) -> None:
    """Start this process again as `python *arguments` with the pins set, unless they are set already."""
    if not pinned():
        os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **PINS})


def pin_torch() -> None:
    """Turn on torch's deterministic algorithms and one thread; call once, before any tensor is made.

    `use_deterministic_algorithms` sets the same switch but also loads torch's compiler, which takes half of the start.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.set_deterministic_debug_mode("error")
    # else a step spends a tenth of its time on filling memory that is written next
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

"""What a result was measured on: the shape of the machine, whether it was free, the versions in this environment."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lhydra import kernels

SPIN_S = 0.5
MIN_CORE_SCALING = 1.8  # two spinning processes on two free cores do about twice the work of one
PACKAGES = ("lhydra", "grpcio", "protobuf", "numpy", "faiss-cpu", "onnxruntime", "lmdb")


def machine() -> dict[str, Any]:
    """Returns cores, processor, memory and what else was going on; no name of the machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": usable,
        "processor": _proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def core_scaling(seconds: float = SPIN_S) -> float:
    """Measures how much more two spinning processes get done than one: about 2 where two cores are free.

    Args:
        seconds: that each of four of them spins.

    Returns:
        The ratio.
    """
    before, both, after = _spin(1, seconds), _spin(2, seconds), _spin(1, seconds)
    return round(2 * both / (before + after), 2)


def noise_line(before: float, after: float) -> str:
    """Returns the line that says whether two cores were free.

    Args:
        before: from `core_scaling`, before the benchmark.
        after: from `core_scaling`, after it.

    Returns:
        The line.
    """
    found = f"two spinning processes do x{before:.2f} (before) and x{after:.2f} (after) of one"
    free = min(before, after) >= MIN_CORE_SCALING
    return found if free else f"{found}: THE CORES WERE NOT FREE (below x{MIN_CORE_SCALING}), THE FIGURES ARE NOISE"


def versions() -> dict[str, str | None]:
    """Returns the versions of python, of packages that matter (None where one is not installed), and the kernels."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"kernels": "NumPy" if kernels.compiled is None else "compiled"}


def _proc(file: str, key: str) -> str:
    try:
        lines = Path("/proc", file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


SPINNER = (
    "import sys, time\nsys.stdin.readline()\nend, n = time.perf_counter() + float(sys.argv[1]), 0\n"
    "while time.perf_counter() < end: n += 1\nprint(n)"
)


def _spin(processes: int, seconds: float) -> int:
    """How often so many processes, spinning at once, go round together."""
    command = [sys.executable, "-c", SPINNER, str(seconds)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    time.sleep(0.1 + 0.2 * seconds)  # until they have started
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(int(process.communicate()[0]) for process in running)

"""Describe the machine that a benchmark runs on, and measure the memory that this process uses."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.processors import usable_cores

BUSY = 0.5  # times are trusted up to this load average per core: half of the cores had other work
UNSTEADY = 0.3  # times are trusted up to this spread of rounds / median; a quiet machine has 0.02 to 0.15
_PACKAGES = (
    *("lucid-deploy", "torch", "onnx", "onnxscript", "onnxruntime", "openvino"),
    *("triton", "transformers", "xllamacpp", "numpy"),
)


def describe_machine() -> dict[str, Any]:
    """Return processor, cores of this process, memory, system, versions and, in a git checkout, the commit."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def load_average() -> float | None:
    """Return how many processes ran or waited on average over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows, and some sandboxes
        return None


def distrust(cores: int, load: float | None, spreads: Iterable[float]) -> list[str]:
    """Return reasons not to trust what was timed; none on a quiet machine.

    Args:
        cores: The cores that this process may use.
        load: The machine's load average before the benchmark; None: not known.
        spreads: For each measurement, the difference of its slowest and fastest rounds over their median.
    """
    reasons = []
    if load is not None and load > BUSY * cores:
        reasons.append(f"the load average was {load:.1f} on {cores} cores before it began")
    if (widest := max(spreads, default=0.0)) > UNSTEADY:
        reasons.append(f"rounds of one measurement differ by up to {100 * widest:.0f} %")
    return reasons


def copy_bandwidth(size: int = 1 << 28, repeats: int = 5) -> float:
    """Measure how fast this machine copies memory with one thread per core: bytes read plus written, per second."""
    count = usable_cores()
    source = [np.ones(size // count, dtype=np.uint8) for _ in range(count)]
    target = [np.zeros_like(part) for part in source]
    best = float("inf")
    for _ in range(repeats + 1):
        threads = [threading.Thread(target=np.copyto, args=pair) for pair in zip(target, source, strict=True)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, time.perf_counter() - started)
    return 2 * sum(part.nbytes for part in source) / best


def _cpuinfo(field: str) -> str | None:
    """Return a field that Linux's ``/proc/cpuinfo`` has for the first core; None if there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(field)), None)
    except OSError:
        return None


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # another project's checkout may lie around an installed package
        return "not a git checkout"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def resident_bytes(field: str) -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (peak since the last reset) of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise LucidError(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def reset_peak() -> None:
    """Reset this process's peak memory, ``VmHWM`` of :func:`resident_bytes`, to what it uses now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")

"""How many processors this process may use, by its affinity and its control group.

A container is a control group: ``docker run --cpus 2`` and Kubernetes' ``limits.cpu`` set its quota, ``--cpuset-cpus``
its processors. Runtimes count the machine's cores instead, and start too many threads: some wait for others that the
system has paused, and onnxruntime binds some to cores that this process may not use.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path("/")  # holds proc and sys


def allowed_threads(root: Path = _ROOT) -> int | None:
    """Return :func:`usable_cores` as the number of threads to start; None: no restriction, or not on Linux."""
    if sys.platform != "linux":
        return None
    cores, usable = _cores(root), usable_cores(root)
    everything = os.sched_getaffinity(0) == set(range(os.cpu_count() or 1))
    return None if everything and usable == cores else usable


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many threads of this process can run at a time: its cores, or its group's quota, rounded, if less."""
    cores, quota = _cores(root), processor_quota(root)
    # With a quota of 1.5, two threads were faster than one.
    return cores if quota is None or quota >= cores else max(1, int(quota + 0.5))


def processor_quota(root: Path = _ROOT) -> float | None:
    """Return the quota that control groups (version 2) set, as a number of processors; None: there is no quota."""
    quotas = []
    lines = _read_text(root / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    group = Path(own.lstrip("/"))
    # Quotas of enclosing groups count, too. In a container, /sys/fs/cgroup may itself be the group that /proc names.
    for folder in (group, *group.parents, Path()):
        quota, period, *_ = [*_read_text(root / "sys/fs/cgroup" / folder / "cpu.max").split(), "", ""]
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _read_text(path: Path) -> str:
    """Return a file's text; an empty one if it cannot be read, as on other systems."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")  # groups may have any name
    except OSError:
        return ""


def _cores(root: Path) -> int:
    """Count the cores with a processor that this process may run on; on other systems than Linux, all processors."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = set()
    for number in os.sched_getaffinity(0):
        siblings = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        cores.add(_read_text(siblings).strip() or f"processor {number}")  # each counts as a core if nothing is known
    return len(cores)

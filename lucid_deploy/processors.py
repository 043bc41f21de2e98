"""How much of the machine this process may use: processors by its affinity and its control group, and memory's files.

A container is a control group. ``docker run --cpus 2`` and ``limits.cpu`` of Kubernetes set its quota, and
``--cpuset-cpus`` the processors that it runs on. Runtimes count the machine's cores instead: their threads then wait
for each other while the system has stopped one of them, and onnxruntime binds each to a core that this process may not
have.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def allowed_threads(root: Path = _ROOT) -> int | None:
    """Return :func:`usable_cores`, or None where nothing keeps this process from using the whole machine.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    if sys.platform != "linux":
        return None
    cores, usable = _cores(root), usable_cores(root)
    everything = os.sched_getaffinity(0) == set(range(os.cpu_count() or 1))
    return None if everything and usable == cores else usable


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many threads of this process can compute at a time.

    Args:
        root: As in :func:`allowed_threads`.

    Returns:
        The cores that it may run on, or the quota of its control group, rounded, if that is less; at least 1. Where the
        system does not say, the machine's processors.
    """
    cores, quota = _cores(root), processor_quota(root)
    # With a quota of 1.5, two threads were faster than one.
    return cores if quota is None or quota >= cores else max(1, int(quota + 0.5))


def processor_quota(root: Path = _ROOT) -> float | None:
    """Return how much processor time control groups give this process, in processors; None: as much as there is.

    Args:
        root: As in :func:`allowed_threads`.
    """
    found = []
    for folder in control_groups("cpu", root):
        # Version 2 has both numbers in one file, and "max" for no quota; version 1 has two files, and -1.
        quota, period, *_ = [*read_text(folder / "cpu.max").split(), "", ""]
        if not quota:
            quota = read_text(folder / "cpu.cfs_quota_us").strip()
            period = read_text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def control_groups(controller: str, root: Path = _ROOT) -> Iterator[Path]:
    """Yield the folders of this process's control groups that can limit it: its own and those around it.

    Args:
        controller: Such as ``cpu`` or ``memory``.
        root: As in :func:`allowed_threads`.
    """
    mounts = root / "sys/fs/cgroup"
    # The top is always among them: a container sees its own group there, whatever name the machine has for it.
    found = {mounts: "/", mounts / "unified": "/", mounts / controller: "/"}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]  # sandboxes that imitate Linux may write anything here
        if not names:  # version 2
            found |= {mounts: path, mounts / "unified": path}
        elif controller in names.split(","):
            found |= {mounts / controller: path, mounts / names: path}
    for top, path in found.items():
        inner = Path(path.lstrip("/"))
        yield from (top / part for part in (inner, *inner.parents))


def read_text(path: Path) -> str:
    """Return a file's text; nothing where it cannot be read: another system, or another version of control groups."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")  # groups may have any name
    except OSError:
        return ""


def _cores(root: Path) -> int:
    """Count the cores whose processors this process may run on."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len({_core(number, root) for number in os.sched_getaffinity(0)})


def _core(number: int, root: Path) -> str:
    """Name the core that a processor is a part of; without word of it, the processor is one."""
    siblings = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
    return read_text(siblings).strip() or f"processor {number}"

"""Memory of this process, as Linux counts it."""

from __future__ import annotations

import os

from lucid_deploy.errors import LucidError

TAKE_LESS = (
    "Take smaller --lengths or --batches; lucid-deploy inspect ARTIFACT --batch ROWS --context TOKENS says the need."
)


def physical_bytes() -> int:
    """Return the memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes(field: str) -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (peak since the last reset) of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise LucidError(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def reset_peak() -> None:
    """Start a new peak, for ``VmHWM`` of :func:`resident_bytes`."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")

"""For which processors a shared library was built."""

from __future__ import annotations

import platform
from pathlib import Path

_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64le"}  # e_machine of ELF's header


def built_for(library: Path) -> str | None:
    """Return the kind of processor of an ELF file as ``platform.machine`` spells it; None if it is no ELF file."""
    with library.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or len(header) < 20:
        return None
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return _MACHINES.get(number, f"processors of number {number}")


def wrong_machine(library: Path) -> str:
    """Return what is wrong, when a library is for other processors than this machine's; empty if nothing is."""
    found, here = built_for(library), platform.machine()
    return f"it was built for {found} and this machine is {here}" if found not in (None, here) else ""

"""For which processors a shared library was built, and whether all of it is there."""

from __future__ import annotations

import platform
import struct
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


def cut_short(library: Path) -> str:
    """Return what is wrong, when a library has fewer bytes than its headers say; empty if nothing is.

    The loader maps such a file all the same, and the process ends with a bus error where it touches what is missing.
    """
    there = library.stat().st_size
    with library.open("rb") as file:  # such libraries are large: headers alone are read
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02" or len(header) < 64:
            return ""  # what the loader refuses by itself
        order = "<" if header[5] == 1 else ">"
        segments, sections = struct.unpack_from(f"{order}2Q", header, 32)
        segment_size, segment_count, section_size, section_count = struct.unpack_from(f"{order}4H", header, 54)
        ends = [sections + section_size * section_count, segments + segment_size * segment_count]
        if segment_size >= 56 and ends[-1] <= there:
            file.seek(segments)
            table = file.read(segment_size * segment_count)
            for at in range(0, len(table), segment_size):
                offset, size = (struct.unpack_from(f"{order}Q", table, at + field)[0] for field in (8, 32))
                ends.append(offset + size)
    return f"it was cut: it has {there} of {max(ends)} bytes" if max(ends) > there else ""


def obstacle(library: Path) -> str:
    """Return why a library cannot be loaded here, as far as its headers tell; empty if they tell nothing."""
    return wrong_machine(library) or cut_short(library)

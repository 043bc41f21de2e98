"""Folders of built libraries and compiled kernels, and a check whether a library can be loaded on this machine."""

from __future__ import annotations

import os
import platform
import struct
from pathlib import Path

from lucid_deploy.errors import LucidError

PREBUILT = Path(__file__).with_name("prebuilt")  # exists in wheels built by ``make wheel``, not in a checkout
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64le"}  # e_machine in the ELF header


def cache_folder() -> Path:
    """Return lucid-deploy's folder in the user's cache; it need not exist.

    Raises:
        LucidError: The user has no home folder, and XDG_CACHE_HOME is not set.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lucid-deploy"
    except RuntimeError as error:
        raise LucidError(
            "This user has no home folder, so there is no place for built libraries and kernels. Set HOME or "
            "XDG_CACHE_HOME to a folder."
        ) from error


def prebuilt(name: str) -> Path | None:
    """Return the path of a library that was installed with this package; None if it has none of that name."""
    path = PREBUILT / name
    return path if path.is_file() else None


def origin(library: Path) -> str:
    """Return a library's origin for messages: the wheel, or a build on this machine."""
    return "from the wheel" if library.parent == PREBUILT else "built here"


def built_for(library: Path) -> str | None:
    """Return the processor of an ELF file, as ``platform.machine`` spells it; None if the file is not ELF."""
    with library.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or len(header) < 20:
        return None
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return _MACHINES.get(number, f"processors of type {number}")


def load_obstacle(library: Path) -> str:
    """Return why a library cannot be loaded here, judging by its headers; an empty string if they show no reason."""
    processor, here = built_for(library), platform.machine()
    if processor not in (None, here):
        return f"it was built for {processor} and this machine is {here}"
    return _missing_bytes(library)


def _missing_bytes(library: Path) -> str:
    """Return a message if a library is shorter than its headers say; else an empty string.

    The loader would map such a file, and the process would die of a bus error on reading a missing part.
    """
    size = library.stat().st_size
    with library.open("rb") as file:  # libraries are large: read only the headers
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02" or len(header) < 64:
            return ""  # the loader refuses such a file
        order = "<" if header[5] == 1 else ">"
        segments, sections = struct.unpack_from(f"{order}2Q", header, 32)
        segment_size, segment_count, section_size, section_count = struct.unpack_from(f"{order}4H", header, 54)
        ends = [sections + section_size * section_count, segments + segment_size * segment_count]
        if segment_size >= 56 and ends[-1] <= size:
            file.seek(segments)
            table = file.read(segment_size * segment_count)
            for at in range(0, len(table), segment_size):
                offset, length = (struct.unpack_from(f"{order}Q", table, at + field)[0] for field in (8, 32))
                ends.append(offset + length)
    return f"it is truncated: it has {size} of {max(ends)} bytes" if max(ends) > size else ""

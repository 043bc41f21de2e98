"""Built libraries: where they and compiled kernels are kept, and whether one can be loaded here."""

from __future__ import annotations

import os
import platform
import struct
from pathlib import Path

from lucid_deploy.errors import LucidError

PREBUILT = Path(__file__).with_name("prebuilt")  # in a wheel of make wheel; a checkout has none
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64le"}  # e_machine of ELF's header


def cache_folder() -> Path:
    """Return lucid-deploy's folder in the user's cache; it need not exist.

    Raises:
        LucidError: The user has no home, and no variable says where else.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lucid-deploy"
    except RuntimeError as error:
        raise LucidError(
            "This user has no home folder, so there is no place for built libraries and kernels. Set HOME or "
            "XDG_CACHE_HOME to a folder."
        ) from error


def prebuilt(name: str) -> Path | None:
    """Return the library of that file name that was installed with this package; None if none was."""
    path = PREBUILT / name
    return path if path.is_file() else None


def origin(library: Path) -> str:
    """Return where a library is from, for people: the wheel, or a build on this machine."""
    return "from the wheel" if library.parent == PREBUILT else "built here"


def built_for(library: Path) -> str | None:
    """Return the processor of an ELF file as ``platform.machine`` spells it; None if it is no ELF file."""
    with library.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or len(header) < 20:
        return None
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return _MACHINES.get(number, f"processors of number {number}")


def load_obstacle(library: Path) -> str:
    """Return why a library cannot be loaded here, as far as its headers tell; empty if they tell nothing."""
    found, here = built_for(library), platform.machine()
    if found not in (None, here):
        return f"it was built for {found} and this machine is {here}"
    return _missing_bytes(library)


def _missing_bytes(library: Path) -> str:
    """Return what is wrong if a library has fewer bytes than its headers say.

    The loader maps such a file all the same, and the process ends with a bus error where it touches what is missing.
    """
    there = library.stat().st_size
    with library.open("rb") as file:  # such libraries are large: headers alone are read
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02" or len(header) < 64:
            return ""  # the loader refuses it by itself
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

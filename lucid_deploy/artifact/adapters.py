"""The file ``adapters.bin`` of the LoRA adapters that an artifact keeps apart from its weights.

The file begins with the matrices that the graphs read, at the offsets that the export fixed. A JSON object follows: a
``StoredAdapter`` for each adapter, and the matrices' hash. It is one file, so that one rename replaces both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from lucid_deploy.artifact.manifest import ADAPTERS, AdapterSlots, Name, Size
from lucid_deploy.errors import CheckFailed, LucidError, in_one_line, reading
from lucid_deploy.files import atomic_write

_Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BASE = "base"  # reserved adapter name: the model without an adapter


class StoredAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The entry of one adapter in the file's JSON object."""

    name: Name
    slot: Annotated[int, Meta(ge=1, le=2**31)]  # the value of adapter_ids that selects this adapter
    rank: Size
    source: str  # the directory from which the adapter was added
    sha256: _Hash  # of the adapter's matrices in float32, with the weights' folded scales applied


class _Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    adapters: tuple[StoredAdapter, ...]
    sha256: _Hash  # of the matrices


def check_name(name: str) -> None:
    """Raise ``LucidError`` unless a name matches the pattern of names and is not ``base``, which is reserved."""
    if not _NAME.fullmatch(name) or name == BASE:
        raise LucidError(
            f"An adapter cannot be called {name!r}: a name has up to 64 letters, digits, dots, dashes and underscores, "
            f"begins with a letter or digit, and is not {BASE}, which stands for the model without an adapter."
        )


def read_adapters(directory: Path, slots: AdapterSlots) -> tuple[StoredAdapter, ...]:
    """Return an artifact's adapters in the order of their slots; ``CheckFailed`` if the file is missing or damaged."""
    return _read_index(directory / ADAPTERS, slots).adapters


def check_adapters(directory: Path, slots: AdapterSlots) -> None:
    """Check that the matrices have the sha256 that the file records; raise ``CheckFailed`` if not."""
    path = directory / ADAPTERS
    index = _read_index(path, slots)
    if hashlib.sha256(read_matrices(directory, slots)).hexdigest() != index.sha256:
        raise CheckFailed(f"{path} is damaged: its matrices do not have the sha256 they were written with.")


def read_matrices(directory: Path, slots: AdapterSlots) -> bytearray:
    """Return the bytes of all adapters' matrices, the first part of the file."""
    path = directory / ADAPTERS
    with reading(path), path.open("rb") as file:
        return bytearray(file.read(slots.size))


def write_adapters(directory: Path, matrices: bytes | bytearray, adapters: Sequence[StoredAdapter]) -> None:
    """Write ``adapters.bin`` atomically: the matrices, then their index."""
    index = _Index(tuple(sorted(adapters, key=lambda each: each.slot)), hashlib.sha256(matrices).hexdigest())
    path = directory / ADAPTERS
    try:
        atomic_write(path, bytes(matrices) + msgspec.json.encode(index) + b"\n")
    except OSError as error:
        raise LucidError(f"{path} cannot be written: {error.strerror or error}. Nothing was changed.") from error


def _read_index(path: Path, slots: AdapterSlots) -> _Index:
    if not path.is_file():
        raise CheckFailed(f"{path.parent} is incomplete: {path.name} is missing. Export it again.")
    with reading(path), path.open("rb") as file:
        file.seek(slots.size)
        text = file.read()
    try:
        index = msgspec.json.decode(text, type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckFailed(f"{path} was cut or is damaged ({in_one_line(error)}). Export the model again.") from error
    taken = [each.slot for each in index.adapters]
    names = {each.name for each in index.adapters}
    if sorted({*taken}) != taken or max(taken, default=0) > slots.count or len(names) < len(taken):
        raise CheckFailed(f"{path} is damaged: slots or names repeat, or slots descend or exceed {slots.count}.")
    return index

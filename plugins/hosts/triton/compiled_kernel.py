"""Compiled kernels, and keeping them on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lucid_deploy.files import atomic_write
from lucid_deploy.plugins.hosts.libraries import cache_folder


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code (or PTX) of one variant and what launching it takes.

    Attributes:
        variant: Name of the variant.
        arch: Compute capability it was compiled for, 90 for 9.0.
        is_ptx: PTX text for the driver to compile, instead of machine code.
        entry: The function's name in the module.
        shared_bytes: Dynamic shared memory.
        num_warps: Warps of a program; threads are 32 times that.
        constants: The compile-time constants that the grid depends on.
        arguments: Names of the arguments in order, without the two scratch pointers that Triton appends.
        image: The module.
    """

    variant: str
    arch: int
    is_ptx: bool
    entry: str
    shared_bytes: int
    num_warps: int
    constants: dict[str, int]
    arguments: list[str]
    image: bytes = field(repr=False)


def total_size(kernels: Sequence[CompiledKernel]) -> tuple[int, int]:
    """Return the bytes of all modules, and what is left of them in a wheel (deflate, as pip's archives use)."""
    return sum(len(kernel.image) for kernel in kernels), sum(len(zlib.compress(kernel.image)) for kernel in kernels)


def default_cache() -> Path:
    """Return the user's cache folder for compiled kernels."""
    return cache_folder() / "kernels"


def save(path: Path, kernels: list[CompiledKernel]) -> None:
    """Write to the cache so that a reader never sees half of it; a full or read-only disk loses the cache only."""
    images = b"".join(kernel.image for kernel in kernels)
    headers = [{**asdict(kernel), "image": len(kernel.image)} for kernel in kernels]
    header = json.dumps({"sha256": hashlib.sha256(images).hexdigest(), "kernels": headers})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, header.encode() + b"\n" + images, mode=0o600)


def load(path: Path) -> list[CompiledKernel] | None:
    """Read from the cache; None when it is not there or damaged."""
    try:
        head, images = path.read_bytes().split(b"\n", 1)
        header = json.loads(head)
        if header["sha256"] != hashlib.sha256(images).hexdigest():
            return None
        kernels = []
        for entry in header["kernels"]:
            size = entry.pop("image")
            kernels.append(CompiledKernel(**entry, image=images[:size]))
            images = images[size:]
        return kernels
    except (OSError, ValueError, KeyError, TypeError):
        return None

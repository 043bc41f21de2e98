"""Compiled kernels, and their cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lucid_deploy.files import atomic_write
from lucid_deploy.plugins.hosts.libraries import cache_folder


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code or PTX of one variant, with the metadata needed to launch it.

    Attributes:
        variant: Name of the variant.
        arch: Compute capability it was compiled for, 90 for 9.0.
        is_ptx: Whether ``image`` is PTX, which the driver compiles, instead of machine code.
        entry: The kernel function's name in ``image``.
        shared_bytes: Size of the dynamic shared memory.
        num_warps: Warps per program; a program has 32 times as many threads.
        constants: The compile-time constants; the grid depends on some of them.
        arguments: Names of the arguments in order, without the two scratch pointers that Triton appends.
        image: The machine code or PTX.
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


def default_cache() -> Path:
    """Return the user's cache folder for compiled kernels."""
    return cache_folder() / "kernels"


def save(path: Path, kernels: list[CompiledKernel]) -> None:
    """Write kernels to the cache atomically; errors such as a full disk are ignored, since only the cache is lost."""
    images = b"".join(kernel.image for kernel in kernels)
    headers = [{**asdict(kernel), "image": len(kernel.image)} for kernel in kernels]
    header = json.dumps({"sha256": hashlib.sha256(images).hexdigest(), "kernels": headers})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, header.encode() + b"\n" + images, mode=0o600)


def load(path: Path) -> list[CompiledKernel] | None:
    """Read kernels from the cache; None if the file is missing or damaged."""
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

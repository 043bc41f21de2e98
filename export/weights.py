"""The weight file that both graphs share: planned before it is written, written tensor by tensor."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.model.checkpoint import Checkpoint

ALIGNMENT = 4096  # bytes; a page, so that runtimes can map a tensor without copying it
ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class StoredTensor:
    """One weight in the file.

    Attributes:
        name: Its name in the graphs and in the checkpoint.
        shape: As stored.
        transposed: Whether that is the transpose of the checkpoint's.
        offset: First byte; a multiple of the alignment.
        size: Bytes.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool
    offset: int
    size: int


def plan_weights(shapes: dict[str, tuple[int, ...]], transposed: set[str], dtype: str) -> dict[str, StoredTensor]:
    """Lay out the file.

    Args:
        shapes: The checkpoint's tensors, in the order they shall have in the file.
        transposed: Which of them are stored transposed.
        dtype: Type of all of them in the file.
    """
    plan, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * ITEM_SIZE[dtype]
        stored = shape[::-1] if name in transposed else shape
        plan[name] = StoredTensor(name, stored, name in transposed, offset, size)
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return plan


def write_weights(
    path: Path,
    plan: dict[str, StoredTensor],
    checkpoint: Checkpoint,
    dtype: str,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write the weights, holding one tensor in memory at a time.

    Args:
        path: The file to make.
        plan: From :func:`plan_weights`.
        checkpoint: Where the tensors are.
        dtype: Type to store.
        progress: Called with (bytes written, bytes in all).

    Returns:
        The sha256 of the file, in hexadecimal.

    Raises:
        LucidError: A value is not finite in the wanted type.
        OSError: The disk is full, or another fault of the file system.
    """
    total = max((tensor.offset + tensor.size for tensor in plan.values()), default=0)
    digest, position = hashlib.sha256(), 0
    with path.open("wb") as file:
        for tensor in plan.values():
            for data in (bytes(tensor.offset - position), _content(checkpoint, tensor, dtype)):
                file.write(data)
                digest.update(data)
            position = tensor.offset + tensor.size
            if progress is not None:
                progress(position, total)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _content(checkpoint: Checkpoint, tensor: StoredTensor, dtype: str) -> memoryview:
    import torch

    data = checkpoint.tensor(tensor.name).to(getattr(torch, dtype))
    if not data.isfinite().all():
        raise LucidError(
            f"{checkpoint.directory}: {tensor.name} has values that are not finite in {dtype}. "
            + ("Export with --dtype bfloat16 or float32." if dtype == "float16" else "The checkpoint is damaged.")
        )
    if tensor.transposed:
        data = data.mT
    return memoryview(data.reshape(-1).contiguous().view(torch.uint8).numpy())

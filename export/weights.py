"""The weight file that all graphs share: planned before it is written, then written tensor by tensor."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import whole_pages
from lucid_deploy.artifact.quantization import (
    HQQ,
    NEAREST,
    OFFSETS,
    PACKED,
    SCALES,
    STORED,
    Quantization,
    weight_and_rows,
)
from lucid_deploy.artifact.quantized_bytes import to_qdq
from lucid_deploy.cache.layout import ITEM_SIZES
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.method import Rounded, find_method

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.checkpoint import Checkpoint

Chosen = dict[str, Rounded]  # by name, all rows of each weight of which scales, offsets or numbers were learned


@dataclass(frozen=True)
class StoredTensor:
    """One weight in the file, or a part of a quantized one."""

    name: str  # of the model's weight or of some of its rows; for an adapter's matrix, the name in the graphs
    shape: tuple[int, ...]  # as stored
    transposed: bool  # whether ``shape`` is the transpose of the checkpoint's
    offset: int  # of its first byte in the file, at the start of a page
    size: int  # bytes
    dtype: str  # type in the graphs: ONNX's name in lower case, but float32 for FLOAT
    part: str = ""  # empty for a whole weight, else one of Quantization.parts


def plan_weights(
    shapes: dict[str, tuple[int, ...]], transposed: set[str], dtype: str, quantization: Quantization | None = None
) -> dict[str, StoredTensor]:
    """Lay out the file; return each stored tensor by ``name + part``: its name in the graphs (a tied head may differ).

    Args:
        shapes: Shapes of the model's weights without a tied head, by name, in the order of the file.
        transposed: Names of the weights whose last two axes are exchanged in the file.
        dtype: Type of weights that are not quantized, and of scales and offsets of int8 and int4 that record no type.
    """
    plan: dict[str, StoredTensor] = {}
    offset = 0

    def add(name: str, shape: tuple[int, ...], size: int, kind: str, part: str = "", turned: bool = False) -> None:
        nonlocal offset
        plan[name + part] = StoredTensor(name, shape, turned, offset, size, kind, part)
        offset += whole_pages(size)

    for name, shape in shapes.items():
        pieces = [] if quantization is None else quantization.pieces(name)
        for piece in pieces:
            assert quantization is not None
            for part in quantization.parts(piece):
                size, kind = quantization.part_size(piece, part, dtype), quantization.part_dtype(piece, part, dtype)
                add(piece, quantization.part_shape(piece, part), size, kind, part)
        if not pieces:
            stored = (*shape[:-2], *shape[:-3:-1]) if name in transposed else shape
            add(name, stored, math.prod(shape) * ITEM_SIZES[dtype], dtype, turned=name in transposed)
    return plan


def write_weights(
    path: Path,
    plan: dict[str, StoredTensor],
    checkpoint: Checkpoint,
    quantization: Quantization | None = None,
    progress: Callable[[int, int], None] | None = None,
    chosen: Chosen | None = None,
) -> str:
    """Write the weights, one tensor in memory at a time, and return the sha256; ``LucidError`` for non-finite values.

    Args:
        chosen: The parts of learned weights, by name; each entry is removed when it is written.
    """
    total = max((tensor.offset + tensor.size for tensor in plan.values()), default=0)
    digest, position = hashlib.sha256(), 0

    def write(data: bytes | memoryview) -> None:
        nonlocal position
        position += file.write(data)
        digest.update(data)

    with path.open("wb") as file:
        for _, group in itertools.groupby(plan.values(), key=lambda tensor: tensor.name):
            parts = {tensor.part: tensor for tensor in group}
            contents = _weight_bytes(parts, checkpoint, quantization, chosen or {})
            for tensor in parts.values():
                write(bytes(tensor.offset - position))
                end = tensor.offset + tensor.size
                while position < end:
                    write(next(contents))
                assert position == end, f"{tensor.name}{tensor.part} has another size than was planned"
                if progress is not None:
                    progress(position, total)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _weight_bytes(
    parts: dict[str, StoredTensor], checkpoint: Checkpoint, quantization: Quantization | None, chosen: Chosen
) -> Iterator[memoryview]:
    """Yield the bytes of one weight's parts in the order of the file; packed values may come in slices."""
    import numpy as np
    import torch

    name, where = next(iter(parts.values())).name, checkpoint.directory
    if quantization is None or PACKED not in parts:
        yield _to_bytes(checkpoint.tensor(name), parts[""], where)
        return
    if quantization.is_float:
        floats = _float_parts(parts[PACKED], checkpoint, quantization)
        yield from (memoryview(floats[part]) for part in parts)
        return
    record, zeros = quantization.tensors[name], None
    if name in chosen:
        rows = [chosen.pop(name)]
    elif quantization.method.name == STORED:
        from lucid_deploy.export.quantize.stored import taken_over
        from lucid_deploy.model.packed.weight import PackedWeight

        weight = checkpoint.packed_weight(name)
        assert isinstance(weight, PackedWeight)
        packed, scales, zeros = taken_over(weight, record)
        rows = [Rounded(np.ascontiguousarray(packed), scales)]
    else:
        rows = list(_rounded(parts, checkpoint, quantization))
    scales = torch.cat([torch.as_tensor(some.scales) for some in rows])
    if quantization.format == "qdq":
        width, bits = record.shape[1], quantization.bits_of(name)
        yield to_qdq(np.concatenate([some.packed for some in rows]), width, bits).data
        scales = scales.mT
    else:
        yield from (some.packed.reshape(-1).data for some in rows)
    yield _to_bytes(scales, parts[SCALES], where)
    if zeros is not None:
        yield np.ascontiguousarray(zeros).reshape(-1).data
    if OFFSETS in parts:
        offsets = torch.cat([torch.as_tensor(some.offsets) for some in rows])  # (out, blocks)
        yield _to_bytes(offsets if record.experts else offsets.mT, parts[OFFSETS], where)  # experts': (E, out, blocks)


def _float_parts(tensor: StoredTensor, checkpoint: Checkpoint, quantization: Quantization) -> dict[str, Any]:
    from lucid_deploy.export.quantize.floats import parts_taken_over, rounded_parts
    from lucid_deploy.model.packed.weight import FloatWeight

    if quantization.method.name == STORED:
        weight = checkpoint.packed_weight(tensor.name)
        assert isinstance(weight, FloatWeight)
        return parts_taken_over(weight, tensor.name, quantization)
    whole = checkpoint.tensor(tensor.name)
    _check_finite(whole, tensor, str(whole.dtype).removeprefix("torch."), checkpoint.directory)
    return rounded_parts(whole, quantization)


def _rounded(parts: dict[str, StoredTensor], checkpoint: Checkpoint, quantization: Quantization) -> Iterator[Rounded]:
    """Round a weight with a method that needs no calibration text."""
    tensor = parts[PACKED]
    record = quantization.tensors[tensor.name]
    name, rows = weight_and_rows(tensor.name)
    weight = record.matrix(checkpoint.tensor(name)[rows])
    _check_finite(weight, tensor, str(weight.dtype).removeprefix("torch."), checkpoint.directory)
    method = find_method(quantization.method.name)
    if method.learns or record.experts:  # weights that were not learned, such as a head, and experts
        method = find_method(HQQ if record.offsets else NEAREST)
    positive = quantization.has_positive_scales(tensor.name)
    return method.round(weight, record, quantization.bits_of(tensor.name), parts[SCALES].dtype, positive)


def _to_bytes(data: torch.Tensor, tensor: StoredTensor, checkpoint: Path) -> memoryview:
    import torch

    if tensor.dtype == "float16":
        _check_finite(data, tensor, "the checkpoint", checkpoint)  # if not finite before the cast, no other type helps
    data = data.to(getattr(torch, tensor.dtype))
    _check_finite(data, tensor, tensor.dtype, checkpoint)
    if tensor.transposed:
        data = data.mT
    return data.reshape(-1).contiguous().view(torch.uint8).numpy().data


def _check_finite(data: torch.Tensor, tensor: StoredTensor, dtype: str, checkpoint: Path) -> None:
    if not data.isfinite().all():
        advice = "Quantize with --method rtn." if tensor.part else "Export with --dtype bfloat16 or float32."
        raise LucidError(
            f"{checkpoint}: {tensor.name} has values that are not finite in {dtype}. "
            + (advice if dtype == "float16" else "The checkpoint is damaged.")
        )

"""The weight file that all graphs share: planned before it is written, then written tensor by tensor."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
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
    ZEROS,
    Quantization,
    QuantizedTensor,
    weight_and_rows,
)
from lucid_deploy.artifact.quantized_bytes import to_qdq
from lucid_deploy.cache.layout import ITEM_SIZES
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.method import Rounded, find_method

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.checkpoint import Checkpoint

Chosen = dict[str, Rounded]  # all rows of weights whose quantized values were learned


@dataclass(frozen=True)
class StoredTensor:
    """One weight in the file, or a part of a quantized one."""

    name: str  # its name in the checkpoint
    shape: tuple[int, ...]  # as stored
    transposed: bool  # whether that is the transpose of the checkpoint's
    offset: int  # first byte; a multiple of the alignment
    size: int  # bytes
    dtype: str  # type in the graphs, as ONNX spells it in lower case
    part: str = ""  # empty for a whole weight, else one of Quantization.parts


def plan_weights(
    shapes: dict[str, tuple[int, ...]], transposed: set[str], dtype: str, quantization: Quantization | None = None
) -> dict[str, StoredTensor]:
    """Lay out the file; return each stored tensor by its name in the graphs.

    Args:
        shapes: The checkpoint's tensors, in the order they shall have in the file.
        dtype: Type of weights that are not quantized, and of the scales of int8 and int4.
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
    """Write the weights, one tensor in memory at a time; return the file's sha256.

    Args:
        chosen: Packed values and scales of weights whose quantized values were learned, by name; each entry is
            removed once it is written.
    """
    total = max((tensor.offset + tensor.size for tensor in plan.values()), default=0)
    types = {t.name: t.dtype for t in plan.values() if t.part == SCALES}
    contents = _TensorBytes(checkpoint, quantization, types, {} if chosen is None else chosen)
    digest, position = hashlib.sha256(), 0
    with path.open("wb") as file:
        for tensor in plan.values():
            padding: Iterable[bytes | memoryview] = [bytes(tensor.offset - position)]
            for data in itertools.chain(padding, contents.of(tensor)):  # a large weight comes in slices
                file.write(data)
                digest.update(data)
            position = tensor.offset + tensor.size
            assert file.tell() == position, f"{tensor.name}{tensor.part} has another size than was planned"
            if progress is not None:
                progress(position, total)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


class _TensorBytes:
    """Produce tensors' bytes in the order of the file; of one quantized weight, keep parts that are still to come."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization | None,
        scale_types: dict[str, str],
        chosen: Chosen,
    ) -> None:
        self._checkpoint, self._quantization, self._scale_types = checkpoint, quantization, scale_types
        self._chosen = chosen
        self._scales: torch.Tensor | None = None
        self._zeros: Any = None
        self._offsets: Any = None
        self._floats: dict[str, Any] = {}

    def of(self, tensor: StoredTensor) -> Iterator[memoryview]:
        if tensor.part and self._quantization is not None and self._quantization.is_float:
            yield memoryview(self._float_part(tensor, self._quantization))
        elif tensor.part == PACKED:
            yield from self._packed(tensor)
        elif tensor.part == SCALES:
            assert self._scales is not None
            yield self._bytes(self._scales, tensor)
            self._scales = None
        elif tensor.part == ZEROS:
            yield memoryview(self._zeros.reshape(-1))
            self._zeros = None
        elif tensor.part == OFFSETS:
            yield self._bytes(self._offsets, tensor)
        else:
            yield self._bytes(self._checkpoint.tensor(tensor.name), tensor)

    def _float_part(self, tensor: StoredTensor, quantization: Quantization) -> Any:
        from lucid_deploy.export.quantize.floats import rounded_parts, stored_parts

        if tensor.part == PACKED and quantization.method.name == STORED:
            weight = self._checkpoint.packed_weight(tensor.name)
            self._floats = stored_parts(weight, tensor.name, quantization)
        elif tensor.part == PACKED:
            whole = self._checkpoint.tensor(tensor.name)
            self._check_finite(whole, tensor, str(whole.dtype).removeprefix("torch."))
            self._floats = rounded_parts(whole, tensor.name, quantization)
        return self._floats.pop(tensor.part)

    def _packed(self, tensor: StoredTensor) -> Iterator[memoryview]:
        import numpy as np
        import torch

        quantization = self._quantization
        assert quantization is not None
        whole, scales = [], []
        for packed, factors in self._parts(tensor, quantization):
            scales.append(factors)
            if quantization.format == "qdq":
                whole.append(packed)
            else:
                yield packed.reshape(-1).data
        if quantization.format == "qdq":
            width = quantization.tensors[tensor.name].shape[1]
            yield to_qdq(np.concatenate(whole), width, quantization.bits_of(tensor.name)).data
        found = torch.cat([torch.as_tensor(factors) for factors in scales])
        self._scales = found.mT if quantization.format == "qdq" else found

    def _parts(self, tensor: StoredTensor, quantization: Quantization) -> Iterator[tuple[Any, Any]]:
        import numpy as np

        record = quantization.tensors[tensor.name]
        if tensor.name in self._chosen:
            yield from self._rounded([self._chosen.pop(tensor.name)], record)
            return
        if quantization.method.name == STORED:
            packed, scales, self._zeros = self._taken_over(tensor.name, quantization)
            yield np.ascontiguousarray(packed), scales
            return
        bits = quantization.bits_of(tensor.name)
        name, rows = weight_and_rows(tensor.name)
        weight = record.matrix(self._checkpoint.tensor(name)[rows])
        self._check_finite(weight, tensor, str(weight.dtype).removeprefix("torch."))
        method = find_method(quantization.method.name)
        if method.learns or record.experts:  # what no text went through: a tied embedding, experts
            method = find_method(HQQ if record.offsets else NEAREST)
        positive = quantization.has_positive_scales(tensor.name)
        rounded = list(method.round(weight, record, bits, self._scale_types[tensor.name], positive))
        yield from self._rounded(rounded, record)

    def _rounded(self, rows: list[Rounded], record: QuantizedTensor) -> Iterator[tuple[Any, Any]]:
        import torch

        if rows[0].offsets is not None:
            offsets = torch.cat([torch.as_tensor(some.offsets) for some in rows])
            self._offsets = offsets if record.experts else offsets.mT  # (blocks, out), experts' as scales
        yield from ((some.packed, some.scales) for some in rows)

    def _taken_over(self, name: str, quantization: Quantization) -> tuple[Any, Any, Any]:
        import numpy as np

        from lucid_deploy.export.quantize.stored import taken_over

        weight = self._checkpoint.packed_weight(name)
        assert weight is not None
        packed, scales, zeros = taken_over(weight, quantization.tensors[name])
        return packed, scales, None if zeros is None else np.ascontiguousarray(zeros)

    def _bytes(self, data: torch.Tensor, tensor: StoredTensor) -> memoryview:
        import torch

        if tensor.dtype == "float16":
            self._check_finite(data, tensor, "the checkpoint")  # another type would not help
        data = data.to(getattr(torch, tensor.dtype))
        self._check_finite(data, tensor, tensor.dtype)
        if tensor.transposed:
            data = data.mT
        return data.reshape(-1).contiguous().view(torch.uint8).numpy().data

    def _check_finite(self, data: torch.Tensor, tensor: StoredTensor, dtype: str) -> None:
        if not data.isfinite().all():
            raise LucidError(
                f"{self._checkpoint.directory}: {tensor.name} has values that are not finite in {dtype}. "
                + ("The checkpoint is damaged." if dtype != "float16" else _beyond_half(tensor))
            )


def _beyond_half(tensor: StoredTensor) -> str:
    """Say how to export a tensor whose values float16 does not reach."""
    return "Quantize with --method rtn." if tensor.part else "Export with --dtype bfloat16 or float32."

"""Keep the quantized values, scales and zero points of a checkpoint that another tool quantized."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lucid_deploy.artifact.quantization import (
    BLOCK_SIZES,
    EMBEDDING,
    FLOAT_SCHEMES,
    STORED,
    Method,
    Quantization,
    QuantizedTensor,
    short_name,
)
from lucid_deploy.artifact.quantized_bytes import pack_nibbles
from lucid_deploy.cache.layout import Array
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.options import QuantizeOptions, check_kernels
from lucid_deploy.model.packed.weight import FloatWeight

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.packed.layouts import PackedLayout
    from lucid_deploy.model.packed.weight import PackedWeight

_ADVICE = "Quantize the checkpoint that it was made from instead."


def resolve_stored(source: Checkpoint, options: QuantizeOptions | None) -> QuantizeOptions | None:
    """Return the options, ``stored`` for a quantized checkpoint; ``LucidError`` if they do not fit the checkpoint."""
    taken = options is not None and options.scheme == STORED
    if source.layout is None:
        if taken:
            raise LucidError(
                f"{source.directory} is not quantized, so there are no quantized values to keep. Use --quantize "
                "int8, int4, fp8 or nvfp4."
            )
        return options
    if options is None:
        options, taken = QuantizeOptions(STORED), True
    if not taken:
        raise LucidError(
            f"{source.directory} is quantized already ({source.layout.name}, {source.layout.bits} bits); rounding it a "
            "second time would add errors. Use --quantize stored, which keeps its quantized values, or the checkpoint "
            "that it was made from."
        )
    return _read_as_floats(source, options) if source.layout.scheme in FLOAT_SCHEMES else options


def _read_as_floats(source: Checkpoint, options: QuantizeOptions) -> QuantizeOptions:
    """Return the options for an FP8 checkpoint, with the format ``qdq``; ``LucidError`` for options of integers."""
    given = [
        text
        for text, there in (
            ("--quantize-format matmulnbits", options.format == "matmulnbits"),
            ("--activations int8", options.activations == "int8"),
        )
        if there
    ]
    if given:
        raise LucidError(
            f"{source.directory} has weights in FP8 (8-bit floating point), which MatMulNBits cannot read: "
            f"leave out {' and '.join(given)}."
        )
    return dataclasses.replace(options, format="qdq")


def plan_stored(source: Checkpoint, options: QuantizeOptions, dtype: str) -> Quantization:
    """Plan an artifact with a checkpoint's quantized weights; ``LucidError`` if one of them cannot be converted."""
    layout, form = source.layout, options.chosen_format
    assert layout is not None
    check_kernels(form, dtype)
    activations, group = _inputs(layout, options)
    tensors, kept = {}, []
    for name, shape in source.stored_shapes().items():
        weight = source.packed_weight(name) if len(shape) == 2 else None
        if isinstance(weight, FloatWeight):
            tensors[name] = _planned_float(source, name, weight, group)
        elif weight is not None:
            tensors[name] = _planned(source, name, weight, form, dtype)
        elif len(shape) == 2:
            kept.append(name)
    method = Method(STORED, {"layout": layout.name})
    tool = f"{layout.name}, by the checkpoint's configuration"
    return Quantization(layout.scheme, layout.bits, form, activations, tensors, tuple(kept), tool, method, group)


def _inputs(layout: PackedLayout, options: QuantizeOptions) -> tuple[str, int | None]:
    """Return what linear layers' inputs are rounded to, and how many inputs share a scale (None: not in groups)."""
    if layout.scheme not in FLOAT_SCHEMES:
        return options.chosen_activations, None
    if layout.inputs is None or options.activations == "float":
        return "float", None
    return f"fp8-{layout.inputs.kind}", layout.inputs.size


def _check_weight(source: Checkpoint, name: str, weight: PackedWeight | FloatWeight) -> str:
    """Check what all layouts have in common; return the checkpoint and the weight's name for error messages."""
    where = f"{source.directory}: {short_name(name)}"
    if name == EMBEDDING:
        raise LucidError(f"{where} is a quantized embedding, which is not supported. {_ADVICE}")
    if not weight.scales.isfinite().all():
        raise LucidError(f"{where} has scales that are not finite: the checkpoint is damaged.")
    return where


def _planned_float(source: Checkpoint, name: str, weight: FloatWeight, group: int | None) -> QuantizedTensor:
    where = _check_weight(source, name, weight)
    rows, width = weight.codes.shape
    if (weight.scales < 0).any():  # parts_taken_over replaces zero scales by 1
        raise LucidError(f"{where} has negative scales, which TensorRT cannot use. {_ADVICE}")
    if group is not None and width % group:
        raise LucidError(
            f"{where} has {width} inputs, which is not a multiple of the groups' size {group}, so they cannot be "
            "rounded as quantization_config says. Do not round them: --quantize stored --activations float."
        )
    if weight.scales.numel() == 1:
        return QuantizedTensor((rows, width), width, granularity="tensor")
    if weight.scales.shape[1] == 1:
        return QuantizedTensor((rows, width), width, granularity="channel")
    fits = [size for size in BLOCK_SIZES if weight.block[1] % size == 0 and width % size == 0]
    if not fits:
        raise LucidError(
            f"{where} has blocks of {weight.block[1]} inputs in rows of {width}, which cannot be cut into blocks of "
            f"{', '.join(map(str, BLOCK_SIZES))}. {_ADVICE}"
        )
    return QuantizedTensor((rows, width), fits[-1])


def _planned(source: Checkpoint, name: str, weight: PackedWeight, form: str, dtype: str) -> QuantizedTensor:
    import torch

    where = _check_weight(source, name, weight)
    rows, width = weight.codes.shape
    if not weight.scales.to(getattr(torch, dtype)).to(weight.scales.dtype).equal(weight.scales):
        stored = str(weight.scales.dtype).removeprefix("torch.")
        raise LucidError(f"{where} has scales in {stored} that {dtype} would round. Export with --dtype float32.")
    zeros = not weight.is_symmetric
    if form == "qdq" and zeros:
        raise LucidError(f"{where} has zero points, which TensorRT cannot use. Use --quantize-format matmulnbits.")
    if form == "qdq" and weight.bits == 8 and not (weight.scales > 0).all():
        remedy = "Use --quantize-format matmulnbits."
        raise LucidError(f"{where} has scales that are not positive, which TensorRT cannot use. {remedy}")
    fits = [size for size in BLOCK_SIZES if weight.group % size == 0 and (form != "qdq" or width % size == 0)]
    block = fits[-1] if fits else None
    if block is None and weight.group == width and form == "matmulnbits":
        # The checkpoint has one scale per row.
        block = min(size for size in BLOCK_SIZES if size >= min(width, BLOCK_SIZES[-1]))
    if block is None:
        raise LucidError(
            f"{where} has groups of {weight.group} inputs in rows of {width}, which cannot be cut into blocks of "
            f"{', '.join(map(str, BLOCK_SIZES))}. {_ADVICE}"
        )
    return QuantizedTensor((rows, width), block, zeros)


def taken_over(weight: PackedWeight, tensor: QuantizedTensor) -> tuple[Array, torch.Tensor, Array | None]:
    """Return a weight's parts in the artifact's layout.

    Returns:
        Packed bytes ``(out, blocks, block_size · bits / 8)``, scales ``(out, blocks)`` as in the checkpoint, and packed
        zero points ``(out, blocks · bits / 8, rounded up)``; None if there are none.
    """
    half, missing = 1 << (weight.bits - 1), tensor.blocks * tensor.block_size - tensor.shape[1]
    codes = np.pad(weight.codes.numpy(), ((0, 0), (0, missing)), constant_values=half)
    repeats = max(weight.group // tensor.block_size, 1) if weight.group % tensor.block_size == 0 else tensor.blocks
    scales = weight.scales.repeat_interleave(repeats, dim=1)[:, : tensor.blocks]
    packed = (pack_nibbles(codes) if weight.bits == 4 else codes).reshape(len(codes), tensor.blocks, -1)
    if not tensor.zero_points:
        return packed, scales, None
    zeros = weight.zeros.repeat_interleave(repeats, dim=1)[:, : tensor.blocks].numpy()
    return packed, scales, pack_nibbles(zeros) if weight.bits == 4 else zeros

"""The layouts of compressed-tensors: ``pack-quantized``, ``int-quantized`` and ``float-quantized``.

``pack-quantized``: ``weight_packed`` int32 ``(out, in·bits/32)``, each number with 2^(bits−1) added, lowest bits
first; ``weight_scale`` ``(out, groups)``; ``weight_shape`` ``[out, in]``; ``weight_zero_point`` int32
``(out·bits/32, groups)``, packed along the outputs, where weights are not symmetric. ``int-quantized``: ``weight`` int8
``(out, in)``, and scale and zero point as int8. ``float-quantized``, which llm-compressor writes and vLLM reads:
``weight`` float8_e4m3fn ``(out, in)``; ``weight_scale`` one number, ``(out, 1)``, or ``(⌈out/rows⌉, ⌈in/inputs⌉)``;
``input_scale``, one number, where inputs are rounded with it. Published in compressed-tensors' ``compressors/`` and
``quantization/lifecycle/forward.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lucid_deploy.model.packed.fp8 import Block, FloatLayout, refuse_dequantize
from lucid_deploy.model.packed.weight import (
    INDEX_TYPES,
    SCALARS,
    SCALE_TYPES,
    WORD_TYPES,
    InputRounding,
    PackedLayout,
    PackedWeight,
    Shape,
    check_order,
    check_shapes,
    count_blocks,
    group_inputs,
    read_settings,
    unpack_words,
)

if TYPE_CHECKING:
    import torch

_WITHOUT_EFFECT = frozenset(
    ("global_compression_ratio", "ignore", "quant_method", "quantization_status", "use_optimized_inference", "version")
)


class _Settings(msgspec.Struct, kw_only=True, frozen=True):
    format: Literal["pack-quantized", "int-quantized", "float-quantized"]
    config_groups: dict[str, dict[str, Any]]
    kv_cache_scheme: Any = None
    transform_config: dict[str, Any] = {}
    sparsity_config: dict[str, Any] = {}
    dequantize: bool = False
    run_compressed: bool = True


class _Group(msgspec.Struct, kw_only=True, frozen=True):
    weights: dict[str, Any]
    input_activations: dict[str, Any] = {}
    output_activations: dict[str, Any] = {}
    format: str | None = None


class _Numbers(msgspec.Struct, kw_only=True, frozen=True):
    """How weights or inputs are quantized: an entry of a group."""

    type: Literal["int", "float"]
    num_bits: Literal[4, 8]
    strategy: Literal["group", "channel", "tensor", "block", "token"]
    symmetric: bool = True
    dynamic: bool = False
    group_size: int | None = None
    block_structure: Block | None = None
    actorder: Literal["group", "dynamic", "weight", "static"] | bool | None = None
    scale_dtype: Literal["torch.float32", "torch.bfloat16", "torch.float16"] | None = None


def compressed_layout(settings: dict[str, Any]) -> PackedLayout:
    """Read ``quantization_config`` of compressed-tensors; raise ValueError where it is not supported."""
    given = read_settings(settings, _Settings, _WITHOUT_EFFECT)
    if given.kv_cache_scheme:
        raise ValueError("kv_cache_scheme, which rounds the cache, is not supported")
    if given.transform_config.get("config_groups", given.transform_config):
        raise ValueError("transform_config, which rotates weights and inputs, is not supported")
    if given.sparsity_config.get("format", "dense") != "dense":
        raise ValueError("sparsity_config stores weights with zeros left out, which is not supported")
    if len(given.config_groups) != 1:
        raise ValueError(f"it has {len(given.config_groups)} config_groups; only one is supported")
    group = read_settings(next(iter(given.config_groups.values())), _Group, ("targets",), "config_groups")
    if group.format not in (None, given.format):
        raise ValueError(f"format is {given.format!r}, and that of config_groups {group.format!r}")
    if group.output_activations:
        raise ValueError("output_activations, which rounds the outputs of layers, is not supported")
    weights = _numbers(group.weights, "weights")
    if weights.dynamic:
        raise ValueError("the weights' dynamic is true; only stored scales are supported")
    if given.format == "float-quantized":
        return _float_layout(settings, weights, group.input_activations)
    if group.input_activations:
        raise ValueError(
            "input_activations, which rounds the inputs of integer layers, is not supported. Checkpoints with "
            "quantized weights alone (W4A16, W8A16) are"
        )
    return _int_layout(given.format, weights)


def _numbers(settings: dict[str, Any], where: str) -> _Numbers:
    return read_settings(settings, _Numbers, ("observer", "observer_kwargs", "zp_dtype"), where)


def _int_layout(form: str, weights: _Numbers) -> CompressedLayout:
    if weights.type != "int" or (form == "int-quantized" and weights.num_bits != 8):
        raise ValueError(f"{form} weights of type {weights.type} with {weights.num_bits} bits are not supported")
    if weights.strategy not in ("group", "channel", "tensor"):
        raise ValueError(f"the strategy {weights.strategy!r} is not supported; group, channel and tensor are")
    size = (weights.group_size or 0) if weights.strategy == "group" else -1
    if weights.strategy == "group" and size < 1:
        raise ValueError(f"group_size is {weights.group_size}, and must be positive")
    # "group", also spelled "dynamic" and true: weight_g_idx says which inputs share a group. Otherwise neighbours do.
    ordered = weights.strategy == "group" and weights.actorder in ("group", "dynamic", True)
    return CompressedLayout(
        weights.num_bits, weights.strategy, size, form == "pack-quantized", weights.symmetric, ordered
    )


def _float_layout(settings: dict[str, Any], weights: _Numbers, activations: dict[str, Any]) -> FloatLayout:
    size = weights.block_structure
    blocks: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "channel": (1, None)}
    if size is not None:
        blocks["block"] = size[0], size[1]
    block = blocks.get(weights.strategy)
    if block is None:
        raise ValueError(f"the strategy {weights.strategy!r} with block_structure {weights.block_structure}")
    inputs = None
    if activations:
        rounding = _numbers(activations, "input_activations")
        _check_float(rounding, "input_activations")
        group = rounding.group_size
        if (rounding.strategy, rounding.dynamic) == ("tensor", False):
            inputs = InputRounding("static")
        elif (rounding.strategy, rounding.dynamic) == ("token", True):
            inputs = InputRounding("token")
        elif (rounding.strategy, rounding.dynamic) == ("group", True) and (group or 0) > 0:
            inputs = InputRounding("group", group)
        else:
            raise ValueError(
                f"input_activations with strategy {rounding.strategy!r}, dynamic {rounding.dynamic} and group_size "
                f"{group} are not supported; static per tensor, and dynamic per token and per group, are"
            )
    _check_float(weights, "weights")
    refuse_dequantize(settings, inputs)
    static = inputs is not None and inputs.kind == "static"
    return FloatLayout("compressed-tensors", block, "weight_scale", "input_scale" if static else None, inputs)


def _check_float(numbers: _Numbers, where: str) -> None:
    if (numbers.type, numbers.num_bits, numbers.symmetric) != ("float", 8, True):
        points = "" if numbers.symmetric else " and zero points"
        raise ValueError(f"{where} of type {numbers.type} with {numbers.num_bits} bits{points}; only E4M3 is supported")


@dataclass(frozen=True)
class CompressedLayout:
    """Integer weights of compressed-tensors, see :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        bits: Bits of an element.
        strategy: What shares a scale: ``group``, ``channel`` or ``tensor``.
        group_size: Inputs of a group; −1 for the other strategies.
        is_packed: Whether numbers are packed into words of int32.
        symmetric: Whether there are no zero points.
        ordered: Whether only ``weight_g_idx`` says which inputs share a group.
    """

    bits: int
    strategy: str
    group_size: int
    is_packed: bool
    symmetric: bool
    ordered: bool = False
    name = "compressed-tensors"
    inputs = None
    optional = ("weight_g_idx",)

    @property
    def scheme(self) -> str:
        return f"int{self.bits}"

    @property
    def required(self) -> tuple[str, ...]:
        numbers = ("weight_packed", "weight_shape") if self.is_packed else ("weight",)
        order = ("weight_g_idx",) if self.ordered else ()
        return (*numbers, "weight_scale", *(() if self.symmetric else ("weight_zero_point",)), *order)

    @property
    def types(self) -> dict[str, tuple[str, ...]]:
        return {
            "weight": ("I8",),
            "weight_packed": WORD_TYPES,
            "weight_shape": INDEX_TYPES,
            "weight_scale": SCALE_TYPES,
            "weight_zero_point": ("I8", *WORD_TYPES) if self._packs_zeros else ("I8",),
            "weight_g_idx": INDEX_TYPES,
        }

    @property
    def _packs_zeros(self) -> bool:
        """Whether zero points may be packed; older versions stored them as int8."""
        return self.is_packed and self.strategy != "tensor"

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        if self.is_packed:
            out, words = shapes["weight_packed"]
            width = words * 32 // self.bits
        else:
            out, width = shapes["weight"]
        groups = count_blocks(width, group_inputs(width, self.group_size))
        by_strategy: dict[str, list[Shape]] = {
            "group": [(out, groups)],
            "channel": [(out, 1), (out,)],
            "tensor": SCALARS,
        }
        scales = by_strategy[self.strategy]
        packed: list[Shape] = [(count_blocks(out * self.bits, 32), groups)] if self._packs_zeros else []
        check_shapes(
            shapes,
            {
                "weight_scale": scales,
                "weight_zero_point": [*packed, *scales],
                "weight_shape": [(2,)],
                "weight_g_idx": [(width,)],
            },
        )
        return out, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:
        import torch

        if self.is_packed:
            out, width = (int(size) for size in parts["weight_shape"])
            codes = unpack_words(parts["weight_packed"], self.bits)  # (out, in)
            if codes.shape != (out, width):
                raise ValueError(f"weight_shape is [{out}, {width}], but weight_packed holds {list(codes.shape)}")
        else:
            codes = (parts["weight"].to(torch.int16) + 128).to(torch.uint8)
            out, width = codes.shape
        group = group_inputs(width, self.group_size)
        check_order(parts.get("weight_g_idx"), width, group, "actorder static or none")
        groups = count_blocks(width, group)
        scales = parts["weight_scale"].reshape(-1, groups).expand(out, groups).contiguous()
        return PackedWeight(codes, self._zeros(parts, out, groups), scales, self.bits, group)

    def _zeros(self, parts: dict[str, torch.Tensor], out: int, groups: int) -> torch.Tensor:
        """Return the zero points with half the range added, as codes have it: uint8 ``(out, groups)``."""
        import torch

        half = 1 << (self.bits - 1)
        if self.symmetric:
            return torch.full((out, groups), half, dtype=torch.uint8)
        stored = parts["weight_zero_point"]
        if stored.dtype == torch.int32:
            if len(stored) != count_blocks(out * self.bits, 32):
                raise ValueError(f"weight_zero_point has {len(stored)} rows of words for {out} outputs")
            return unpack_words(stored.mT.contiguous(), self.bits)[:, :out].mT.contiguous()
        moved = stored.reshape(-1, groups).to(torch.int16)  # int8 does not hold half of its range
        if len(moved) not in (1, out):
            raise ValueError(f"weight_zero_point has {len(moved)} rows for {out} outputs")
        if ((moved < -half) | (moved >= half)).any():
            raise ValueError(f"weight_zero_point has numbers outside {-half} to {half - 1}, the range of its bits")
        return (moved + half).to(torch.uint8).expand(out, groups).contiguous()

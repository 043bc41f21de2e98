"""Weights in E4M3, and their layouts with ``quant_method`` ``fp8``: DeepSeek, Qwen and transformers, and AutoFP8.

``weight`` float8_e4m3fn ``(out, in)``. With the key ``weight_block_size`` (transformers' ``FineGrainedFP8Config``):
``weight_scale_inv`` ``(⌈out/rows⌉, ⌈in/inputs⌉)``, or one number where the key is null, which in spite of its name is
what a number is multiplied by; ``activation_scale``, one number, where inputs are rounded with it. Without the key
(AutoFP8, vLLM's ``fp8``): ``weight_scale`` and ``input_scale``, one number each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from lucid_deploy.model.packed.weight import (
    FP8,
    SCALARS,
    SCALE_TYPES,
    FloatWeight,
    InputRounding,
    Shape,
    check_shapes,
    count_blocks,
    read_settings,
)

if TYPE_CHECKING:
    import torch

# Keys that say which layers are quantized, which the tensors' types say too.
_WITHOUT_EFFECT = frozenset(("ignored_layers", "modules_to_convert", "modules_to_not_convert", "quant_method"))
_BLOCK_KEY = "weight_block_size"
_Side = Annotated[int, msgspec.Meta(gt=0)]
Block = Annotated[
    list[_Side],
    msgspec.Meta(min_length=2, max_length=2),
]


class _Settings(msgspec.Struct, kw_only=True, frozen=True):
    activation_scheme: Literal["dynamic", "static"] = "dynamic"
    weight_block_size: Block | None = None
    fmt: Literal["e4m3"] = "e4m3"
    scale_fmt: Literal["float"] = "float"
    expert_dtype: Literal["fp8"] = "fp8"
    kv_cache_scheme: Any = None
    dequantize: bool = False


@dataclass(frozen=True)
class FloatLayout:
    """Weights in E4M3, see :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        name: The ``quant_method``.
        block: Rows and inputs that share a scale; None for one of them: all.
        scale: The part's name for the weight's scales.
        input_scale: The part's name for the inputs' scale; None: it is not stored.
        inputs: How inputs are rounded; None: not at all.
    """

    name: str
    block: tuple[int | None, int | None]
    scale: str
    input_scale: str | None
    inputs: InputRounding | None
    bits = 8
    scheme = "fp8"
    optional = ()
    types: ClassVar = {
        "weight": (FP8,),
        **dict.fromkeys(("weight_scale", "weight_scale_inv", "input_scale", "activation_scale"), SCALE_TYPES),
    }

    @property
    def required(self) -> tuple[str, ...]:
        return ("weight", self.scale, *([] if self.input_scale is None else [self.input_scale]))

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        rows, width = shapes["weight"]
        scales: list[Shape] = [self._blocks(rows, width)]
        if self.block == (None, None):
            scales = SCALARS
        elif self.block == (1, None):
            scales.append((rows,))
        expected = {self.scale: scales}
        if self.input_scale is not None:
            expected[self.input_scale] = SCALARS
        check_shapes(shapes, expected)
        return rows, width

    def read(self, parts: dict[str, torch.Tensor]) -> FloatWeight:
        import torch

        weight = parts["weight"]
        if weight.float().isnan().any():
            raise ValueError("the weight contains NaN: the checkpoint is damaged")
        rows, width = weight.shape
        inputs = None
        if self.input_scale is not None:
            inputs = parts[self.input_scale].reshape(())
            if not (inputs.isfinite() and inputs > 0):
                raise ValueError(f"{self.input_scale} is {inputs.item():g}, and must be positive")
        high, wide = self.block
        block = min(high or rows, rows), min(wide or width, width)
        scales = parts[self.scale].reshape(self._blocks(rows, width))
        return FloatWeight(weight.view(torch.uint8), scales, block, inputs)

    def _blocks(self, rows: int, width: int) -> tuple[int, int]:
        """Return how many blocks a weight of this size has, one below the other and side by side."""
        high, wide = self.block
        return count_blocks(rows, high or rows), count_blocks(width, wide or width)


def fp8_layout(settings: dict[str, Any]) -> FloatLayout:
    """Read ``quantization_config`` of the method ``fp8``; raise ValueError where it is not supported."""
    given = read_settings(settings, _Settings, _WITHOUT_EFFECT)
    if given.kv_cache_scheme:
        raise ValueError("kv_cache_scheme, which rounds the cache, is not supported")
    size = given.weight_block_size
    fine_grained = _BLOCK_KEY in settings
    scale = "weight_scale_inv" if fine_grained else "weight_scale"
    input_scale = "activation_scale" if fine_grained else "input_scale"
    if given.activation_scheme == "static":
        inputs = InputRounding("static")
    else:
        inputs = InputRounding("token") if size is None else InputRounding("group", size[1])
    refuse_dequantize(settings, inputs)
    stored = input_scale if inputs.kind == "static" else None
    block = (None, None) if size is None else (size[0], size[1])
    return FloatLayout("fp8", block, scale, stored, inputs)


def refuse_dequantize(settings: dict[str, Any], inputs: InputRounding | None) -> None:
    """Refuse rounded inputs with a key that makes transformers load plain weights; other programs ignore that key.

    Raises:
        ValueError: Both are there.
    """
    key = "dequantize is true" if settings.get("dequantize") else "run_compressed is false"
    if inputs is not None and (settings.get("dequantize") or settings.get("run_compressed") is False):
        raise ValueError(
            f"{key}: transformers then leaves the inputs of layers as they are, other programs round them. Remove the "
            "key; --quantize stored --activations float leaves inputs as they are"
        )

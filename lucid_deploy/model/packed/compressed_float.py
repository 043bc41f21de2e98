"""The layout ``float-quantized`` of compressed-tensors, which llm-compressor writes and vLLM reads: weights in E4M3.

``weight`` float8_e4m3fn ``(out, in)``; ``weight_scale`` one number, ``(out, 1)``, or ``(⌈out/rows⌉, ⌈in/inputs⌉)``;
``input_scale``, one number, where inputs are rounded with it. Published in compressed-tensors'
``compressors/naive_quantized`` and ``quantization/lifecycle/forward.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lucid_deploy.model.packed.compressed import WEIGHT_KEYS, read_group
from lucid_deploy.model.packed.float_weight import (
    FLOAT_TYPES,
    FloatWeight,
    InputRounding,
    check_dequantized,
    check_scalar,
    count_blocks,
    read_float,
)
from lucid_deploy.model.packed.weight import Shape, check_keys, read_switch

if TYPE_CHECKING:
    import torch

FORMAT = "float-quantized"
_STRATEGIES = ("tensor", "channel", "block")


@dataclass(frozen=True)
class CompressedFloatLayout:
    """See :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        strategy: ``tensor``, ``channel`` or ``block``: what shares a scale.
        block: Rows and inputs of a block, for ``block``.
        inputs: How inputs are rounded; None: not at all.
    """

    strategy: str
    block: tuple[int, int]
    inputs: InputRounding | None
    name = "compressed-tensors"
    bits = 8
    scheme = "fp8"
    optional = ()
    types: ClassVar = FLOAT_TYPES

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> CompressedFloatLayout:
        """Read ``quantization_config``.

        Raises:
            ValueError: Settings that are not computed here.
        """
        group = read_group(settings, (FORMAT,))
        if group.get("output_activations"):
            raise ValueError("it rounds outputs of layers (output_activations), which is not computed here")
        weights = group.get("weights") or {}
        _check_numbers(weights, "weights")
        strategy, block = weights.get("strategy"), weights.get("block_structure")
        if strategy not in _STRATEGIES:
            raise ValueError(f"its strategy is {strategy!r}; {', '.join(_STRATEGIES)} are read")
        if weights.get("dynamic"):
            raise ValueError(f"its weights' dynamic is {weights['dynamic']!r}; false is read")
        size = (0, 0)
        if strategy == "block":
            if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
                raise ValueError(f"its block_structure is {block!r}; two numbers such as [128, 128] are read")
            size = (block[0], block[1])
        inputs = _read_inputs(group.get("input_activations"))
        check_dequantized(settings, inputs)
        return cls(strategy, size, inputs)

    @property
    def required(self) -> tuple[str, ...]:
        return ("weight", "weight_scale", *([] if self._input_scale is None else [self._input_scale]))

    @property
    def _input_scale(self) -> str | None:
        return "input_scale" if self.inputs is not None and self.inputs.kind == "static" else None

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        rows, width = shapes["weight"]
        high, wide = self._block(rows, width)
        blocks = (count_blocks(rows, high), count_blocks(width, wide))
        scales: dict[str, list[Shape]] = {"tensor": [(), (1,), (1, 1)], "channel": [(rows, 1), (rows,)]}
        wanted = scales.get(self.strategy, [blocks])
        if tuple(shapes["weight_scale"]) not in wanted:
            raise ValueError(
                f"weight_scale has the shape {list(shapes['weight_scale'])}, and the strategy {self.strategy} asks for "
                f"{' or '.join(str(list(shape)) for shape in wanted)}"
            )
        check_scalar("input_scale", shapes.get("input_scale"))
        return rows, width

    def read(self, parts: dict[str, torch.Tensor]) -> FloatWeight:
        rows, width = parts["weight"].shape
        return read_float(parts, "weight_scale", self._input_scale, self._block(rows, width))

    def _block(self, rows: int, width: int) -> tuple[int, int]:
        return {"tensor": (rows, width), "channel": (1, width)}.get(self.strategy, self.block)


def _read_inputs(settings: dict[str, Any] | None) -> InputRounding | None:
    """Read ``input_activations``.

    Raises:
        ValueError: A rounding that is not computed here.
    """
    if not settings:
        return None
    _check_numbers(settings, "input_activations")
    strategy, dynamic, size = settings.get("strategy"), settings.get("dynamic", False), settings.get("group_size")
    if strategy == "tensor" and dynamic is False:
        return InputRounding("static")
    if strategy == "token" and dynamic is True:
        return InputRounding("token")
    if strategy == "group" and dynamic is True and type(size) is int and size > 0:
        return InputRounding("group", size)
    raise ValueError(
        f"its input_activations are of the strategy {strategy!r} with dynamic {dynamic!r} and group_size {size!r}; a "
        "static tensor, and dynamic tokens and groups, are computed here"
    )


def _check_numbers(settings: dict[str, Any], where: str) -> None:
    check_keys(settings, WEIGHT_KEYS, f"{where}'")
    kind, bits = settings.get("type"), settings.get("num_bits")
    symmetric = read_switch(settings, "symmetric", True)
    if kind != "float" or type(bits) is not int or bits != 8 or not symmetric:
        raise ValueError(
            f"its {where} are {kind!r} of {bits!r} bits"
            f"{'' if symmetric else ' with zero points'}; float of 8 bits without zero points is "
            "read"
        )
    if settings.get("scale_dtype") not in (None, "torch.float32", "torch.bfloat16", "torch.float16"):
        raise ValueError(f"its {where} have the scale_dtype {settings['scale_dtype']!r}, which is not read")

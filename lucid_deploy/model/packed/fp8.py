"""The layouts of ``quant_method`` ``fp8``: weights in E4M3 as DeepSeek, Qwen and transformers store them, and AutoFP8.

``weight`` float8_e4m3fn ``(out, in)``. With the key ``weight_block_size`` (transformers' ``FineGrainedFP8Config``):
``weight_scale_inv`` ``(⌈out/rows⌉, ⌈in/inputs⌉)``, or one number where the key is null, which in spite of its name is
what a number is multiplied by; ``activation_scale``, one number, where inputs are rounded with it. Without the key
(AutoFP8, vLLM's ``fp8``): ``weight_scale`` and ``input_scale``, one number each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lucid_deploy.model.packed.float_weight import (
    FLOAT_TYPES,
    FloatWeight,
    InputRounding,
    check_dequantized,
    check_scalar,
    count_blocks,
    read_float,
)
from lucid_deploy.model.packed.weight import Shape, check_keys

if TYPE_CHECKING:
    import torch

# Keys that are read here, or that say which layers are quantized, which the tensors say too.
_KEYS = frozenset(
    """
    activation_scheme dequantize expert_dtype fmt ignored_layers kv_cache_scheme modules_to_convert
    modules_to_not_convert quant_method scale_fmt weight_block_size
    """.split()  # noqa: SIM905 (a table)
)
_BLOCK_KEY = "weight_block_size"


@dataclass(frozen=True)
class Fp8Layout:
    """See :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        block: Rows and inputs that share a scale; None: all of a weight.
        scale: The name of the scale's part.
        input_scale: The name of the inputs' scale; None: it is not stored.
        inputs: How inputs are rounded.
    """

    block: tuple[int, int] | None
    scale: str
    input_scale: str | None
    inputs: InputRounding
    name = "fp8"
    bits = 8
    scheme = "fp8"
    optional = ()
    types: ClassVar = FLOAT_TYPES

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Fp8Layout:
        """Read ``quantization_config``.

        Raises:
            ValueError: Settings that are not computed here.
        """
        check_keys(settings, _KEYS)
        for key, known in (("fmt", "e4m3"), ("scale_fmt", "float"), ("expert_dtype", "fp8")):
            if settings.get(key, known) != known:
                raise ValueError(f"its {key} is {settings[key]!r}; {known} is read")
        if settings.get("kv_cache_scheme"):
            raise ValueError("its kv_cache_scheme rounds the cache, which is not computed so here")
        scheme = settings.get("activation_scheme", "dynamic")
        if scheme not in ("dynamic", "static"):
            raise ValueError(f"its activation_scheme is {scheme!r}; dynamic and static are read")
        size = settings.get(_BLOCK_KEY)
        if size is not None and not (
            isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        ):
            raise ValueError(f"its {_BLOCK_KEY} is {size!r}; two numbers such as [128, 128] are read")
        names = ("weight_scale_inv", "activation_scale") if _BLOCK_KEY in settings else ("weight_scale", "input_scale")
        if scheme == "static":
            inputs = InputRounding("static")
        else:
            inputs = InputRounding("token") if size is None else InputRounding("group", size[1])
        check_dequantized(settings, inputs)
        stored = names[1] if scheme == "static" else None
        return cls(None if size is None else (size[0], size[1]), names[0], stored, inputs)

    @property
    def required(self) -> tuple[str, ...]:
        return ("weight", self.scale, *([] if self.input_scale is None else [self.input_scale]))

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        rows, width = shapes["weight"]
        if self.block is None:
            check_scalar(self.scale, shapes[self.scale])
        else:
            wanted = (count_blocks(rows, self.block[0]), count_blocks(width, self.block[1]))
            if tuple(shapes[self.scale]) != wanted:
                raise ValueError(
                    f"{self.scale} has the shape {list(shapes[self.scale])}, and blocks of {list(self.block)} ask for "
                    f"{list(wanted)}"
                )
        if self.input_scale is not None:
            check_scalar(self.input_scale, shapes[self.input_scale])
        return rows, width

    def read(self, parts: dict[str, torch.Tensor]) -> FloatWeight:
        rows, width = parts["weight"].shape
        return read_float(parts, self.scale, self.input_scale, self.block or (rows, width))

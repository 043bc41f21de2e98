"""A weight in E4M3 as a quantized checkpoint means it, and what layouts of such weights have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lucid_deploy.model.packed.weight import SCALE_TYPES, Shape

if TYPE_CHECKING:
    import torch

FP8 = "F8_E4M3"  # as safetensors spells the type
# Of the parts of all layouts of such weights.
FLOAT_TYPES = {
    "weight": (FP8,),
    **dict.fromkeys(
        ("weight_scale", "weight_scale_inv", "input_scale", "activation_scale"),
        SCALE_TYPES,
    ),
}


@dataclass(frozen=True)
class InputRounding:
    """How the inputs of quantized products are rounded to E4M3 before they are multiplied.

    Attributes:
        kind: ``static``: with a scale that the checkpoint stores for each weight; ``token``: the largest magnitude of a
            token's inputs / 448; ``group``: that of each ``size`` neighbouring inputs of a token.
        size: Inputs of a group; None otherwise.
    """

    kind: str
    size: int | None = None


@dataclass(frozen=True)
class FloatWeight:
    """Numbers of E4M3 and scales: an element is number · scale, of the block of rows and inputs it is in.

    Attributes:
        codes: Uint8 ``(out, in)``, the bytes of the numbers.
        scales: ``(blocks of rows, blocks of inputs)``, as stored.
        block: Rows and inputs of a block; the last ones may be smaller.
        input_scale: What inputs are divided by before they are rounded, without axes; None: nothing is stored.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    input_scale: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """Return the weight ``(out, in)``: float32, or float64 where float32 would round (scales of float32).

        A number has 4 bits and a scale of half precision 11, so their product is exact in float32.
        """
        import torch

        wide = torch.float32 if self.scales.dtype in (torch.float16, torch.bfloat16) else torch.float64
        (rows, width), (high, wide_by) = self.codes.shape, self.block
        scales = self.scales.to(wide).repeat_interleave(high, dim=0)[:rows]
        scales = scales.repeat_interleave(wide_by, dim=1)[:, :width]
        return self.codes.view(torch.float8_e4m3fn).to(wide) * scales


def read_float(
    parts: dict[str, torch.Tensor], scale: str, input_scale: str | None, block: tuple[int, int]
) -> FloatWeight:
    """Return a weight from its parts: ``weight``, and the names of its scale and of its inputs' scale.

    Raises:
        ValueError: A type that is not read, or numbers that are none; the text says which.
    """
    import torch

    weight, scales = parts["weight"], parts[scale]
    if weight.dtype != torch.float8_e4m3fn:
        raise ValueError(f"its weight is {_type(weight)}, and float8_e4m3fn is read")
    for name, part in parts.items():
        if name != "weight" and part.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"its {name} is {_type(part)}, and float32, float16 and bfloat16 are read")
    if weight.float().isnan().any():
        raise ValueError("it has numbers that are not finite: the checkpoint is damaged")
    (rows, width), (high, wide) = weight.shape, block
    block = min(high, rows), min(wide, width)  # a block may be said to be larger than the weight
    blocks = tuple(count_blocks(size, each) for size, each in zip(weight.shape, block, strict=True))
    inputs = None
    if input_scale is not None:
        inputs = parts[input_scale].reshape(())
        if not (inputs.isfinite() and inputs > 0):
            raise ValueError(f"its {input_scale} is {inputs.item():g}, and must be positive")
    return FloatWeight(weight.view(torch.uint8), scales.reshape(blocks), block, inputs)


def count_blocks(size: int, block: int) -> int:
    """Return how many blocks an axis has."""
    return -(-size // block)


def check_scalar(name: str, shape: Shape | None) -> None:
    """Refuse a part that is not one number.

    Raises:
        ValueError: It is not.
    """
    if shape is not None and tuple(shape) not in ((), (1,), (1, 1)):
        raise ValueError(f"{name} has the shape {list(shape)}, and one number is asked for")


def check_dequantized(settings: dict[str, Any], inputs: InputRounding | None) -> None:
    """Refuse settings that say that inputs are rounded, and that weights become plain ones when they are loaded.

    Raises:
        ValueError: They do.
    """
    said = "dequantize is true" if settings.get("dequantize") else "run_compressed is false"
    if inputs is not None and (settings.get("dequantize") or settings.get("run_compressed") is False):
        raise ValueError(
            f"its {said}, with which transformers leaves the inputs of layers as they are, and other programs round "
            "them. Remove the key; --quantize stored --activations float leaves inputs as they are"
        )


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

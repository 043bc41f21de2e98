"""Weights of quantized checkpoints, independent of the layout in which they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PackedWeight:
    """An integer weight: each element is (code − zero) · scale, with the zero point and the scale of its group."""

    codes: torch.Tensor  # uint8 (out, in), 0 to 2^bits − 1
    zeros: torch.Tensor  # zero points, uint8 (out, groups)
    scales: torch.Tensor  # (out, groups), as stored
    bits: int  # 4 or 8
    group: int  # number of consecutive inputs that share scale and zero point; the last group may be smaller

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero point is the middle of the range."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def dequantize(self) -> torch.Tensor:
        """Return the weight ``(out, in)``: float32, or float64 if float32 would round (for float32 scales).

        ``code − zero`` has at most 9 bits and a half-precision scale 11, so their product is exact in float32.
        """
        wide = _exact_dtype(self.scales)
        width = self.codes.shape[1]
        scales = self.scales.to(wide).repeat_interleave(self.group, dim=1)[:, :width]  # (out, in)
        zeros = self.zeros.to(wide).repeat_interleave(self.group, dim=1)[:, :width]
        return (self.codes.to(wide) - zeros) * scales


@dataclass(frozen=True)
class InputRounding:
    """How the inputs (activations) of quantized matrix products are rounded to E4M3."""

    # the source of the scale. static: the checkpoint stores one per weight; token: the largest magnitude of a token's
    # inputs / 448; group: the largest magnitude of ``size`` consecutive inputs of a token / 448
    kind: str
    size: int | None = None  # inputs per group; None for other kinds


@dataclass(frozen=True)
class FloatWeight:
    """An E4M3 weight: each element is value · scale, with the scale of its block of rows and inputs."""

    codes: torch.Tensor  # uint8 (out, in), the bytes of the E4M3 values
    scales: torch.Tensor  # (blocks of rows, blocks of inputs), as stored
    block: tuple[int, int]  # rows and inputs of a block; the last ones may be smaller
    # scalar by which inputs are divided before rounding; None: the checkpoint does not store it
    input_scale: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """Return the weight ``(out, in)``: float32, or float64 if float32 would round (for float32 scales).

        An E4M3 value has 4 significant bits and a half-precision scale 11, so their product is exact in float32.
        """
        import torch

        dtype = _exact_dtype(self.scales)
        (rows, width), (high, wide) = self.codes.shape, self.block
        scales = self.scales.to(dtype).repeat_interleave(high, dim=0)[:rows]
        scales = scales.repeat_interleave(wide, dim=1)[:, :width]  # (out, in)
        return self.codes.view(torch.float8_e4m3fn).to(dtype) * scales


def count_blocks(size: int, block: int) -> int:
    """Return the number of blocks or groups along an axis; the last one may be smaller."""
    return -(-size // block)


def _exact_dtype(scales: torch.Tensor) -> torch.dtype:
    import torch

    return torch.float32 if scales.dtype in (torch.float16, torch.bfloat16) else torch.float64

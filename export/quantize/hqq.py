"""HQQ (half-quadratic quantization): fit a fractional zero point to every block, without calibration text.

The inverse scale s maps a block's range onto the range of the quantized integers q. The zero points z minimize
‖W − (q − z)/s‖ₚ with p = 0.7, which outliers affect less than squared errors: alternately, the errors are shrunk so
that only outliers remain, and z is set to the mean of the rest (Badri, Shaji, "Half-Quadratic Quantization of Large
Machine Learning Models", 2023). This is ``optimize_weights_proximal`` of the package ``hqq`` 0.2.8, which requires a
GPU or whole transformers models; a test compares both. The steps before it in the package's ``Quantizer`` are left out:
it limits the inverse scale to 2e4 (at 4 bits, blocks whose range is below 7.5e-4), gives blocks whose range is at most
1e-4 the scale 1, and rounds the first zero points at 4 bits.

onnxruntime's CPU kernels support fractional zero points only for 4 bits, and are then a hundred times slower. So the
graphs do the equivalent: with W = q · scale + offset and symmetric q, x Wᵀ is the product of x and q · scale, plus that
of the sums of x's blocks and the offsets. In blocks of (nearly) equal values the offset is their midpoint, and q only
corrects its rounding. So both products stay small: large ones would not cancel if a runtime rounds the inputs of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantization import QuantizedTensor
from lucid_deploy.cache.layout import Array
from lucid_deploy.export.quantize.method import QuantizationMethod, Rounded
from lucid_deploy.export.quantize.nearest import METHOD as NEAREST
from lucid_deploy.export.quantize.nearest import pack_numbers

if TYPE_CHECKING:
    import torch

NORM, BETA, STEPS = 0.7, 10.0, 20  # the package's defaults: p, the weight of the constraint, the most steps
_ELEMENTS = 1 << 20  # elements of a matrix to process at once
_FLAT_STEP = 2.0**-11  # least scale of a block of (nearly) equal values, relative to the value


def hqq_matrix(
    weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str = "float32"
) -> tuple[Array, torch.Tensor, torch.Tensor]:
    """Quantize a matrix ``(out, in)`` with HQQ.

    Returns:
        Packed bytes ``(out, blocks, block_size · bits / 8)``, and scales and offsets, float32 ``(out, blocks)`` rounded
        to ``dtype``. The weight is q · scale + offset; the bytes contain q + 2^(bits − 1), which is not negative.
    """
    import torch

    blocks = weight.float().unflatten(1, (tensor.blocks, -1))  # (out, blocks, block)
    inverse, zeros = _fitted(blocks, (1 << bits) - 1)
    half = 1 << (bits - 1)
    stored = getattr(torch, dtype)
    least = torch.finfo(stored).tiny if dtype != "float16" else 2.0**-24
    scales, offsets = 1 / inverse, (half - zeros) / inverse
    flat, middle, width = _flat(blocks, (1 << bits) - 1)
    scales = torch.where(flat, torch.maximum(width, middle.abs() * _FLAT_STEP), scales)
    offsets = torch.where(flat, middle, offsets).to(stored).float()
    scales = scales.clamp(min=least).to(stored).float()
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    for rows in _slices(blocks):
        whole = ((blocks[rows] - offsets[rows]) / scales[rows]).round_().clamp_(-half, half - 1)
        numbers[rows] = whole.flatten(1).to(torch.int8)
    return pack_numbers(numbers.numpy(), tensor, bits), scales[..., 0], offsets[..., 0]


def _flat(blocks: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each block: whether its values are too close for a scale; the midpoint of their range; its width."""
    least, most = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
    width = most - least
    return ~(top / width).isfinite(), least + width / 2, width


def _fitted(blocks: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inverse scales and zero points, ``(out, blocks, 1)``, for quantized values from 0 to ``top``."""
    import torch

    least = blocks.amin(dim=-1, keepdim=True)
    flat, _, width = _flat(blocks, top)
    inverse = torch.where(flat, torch.ones_like(width), top / width)
    zeros, best = -least * inverse, torch.inf
    for _ in range(STEPS):
        following, lost = torch.empty_like(zeros), 0.0
        for rows in _slices(blocks):
            plain, scale, zero = blocks[rows], inverse[rows], zeros[rows]
            numbers = (plain * scale + zero).round_().clamp_(0, top)
            error = plain - (numbers - zero) / scale
            lost += float(error.abs().sum(dtype=torch.float64))
            following[rows] = (numbers - (plain - _shrunk(error)) * scale).mean(dim=-1, keepdim=True)
        zeros = following
        if not lost < best:
            break
        best = lost
    return inverse, zeros


def _shrunk(error: torch.Tensor) -> torch.Tensor:
    """Return a new tensor with the errors e moved towards zero by |e|^(p − 1) / β, but not past it."""
    magnitude = error.abs()
    return magnitude.sub_(magnitude.pow(NORM - 1).div_(BETA)).clamp_(min=0).mul_(error.sign())


def _slices(blocks: torch.Tensor) -> Iterator[slice]:
    step = max(_ELEMENTS // blocks[0].numel(), 1)
    return (slice(start, start + step) for start in range(0, len(blocks), step))


class Hqq(QuantizationMethod):
    """The method ``--method hqq``; see the module's docstring."""

    name = "hqq"
    offsets = ("matmulnbits", "qdq")

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        if tensor.offsets:
            packed, scales, offsets = hqq_matrix(weight, tensor, bits, dtype)
            yield Rounded(packed, scales, offsets=offsets)
        else:  # 8-bit weights, and the embedding, whose operator has no offsets
            yield from NEAREST.round(weight, tensor, bits, dtype, positive)


METHOD = Hqq()

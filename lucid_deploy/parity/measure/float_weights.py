"""Is a weight in E4M3 or NVFP4 the checkpoint's, rounded to nearest with the scales that the format prescribes?"""

from __future__ import annotations

import numpy as np

from lucid_deploy.artifact.float_formats import E2M1_MAX, E4M3_LEAST, E4M3_MAX, NVFP4_SPAN, spacing
from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantized_bytes import spread, unpack
from lucid_deploy.runtimes.session import Array

# Of a scale or a step: float32 arithmetic may move a number that lies half way, and rounds every scale once or twice.
_SLACK, _SCALE_SLACK = 1e-3, 2.0**-21


def float_difference(
    quantization: Quantization, name: str, packed: Array, scales: Array, original: Array
) -> str | None:
    """Say what is wrong with a weight; None if it is right.

    Args:
        quantization: The record, with the scheme ``fp8`` or ``nvfp4``.
        name: The weight's.
        packed: As :meth:`Quantization.unpack` takes it.
        scales: The same.
        original: Float32 ``(out, in)``.
    """
    tensor = quantization.tensors[name]
    numbers, factors = unpack(quantization, name, packed, scales)
    wanted, off = _wanted_scales(quantization, name, original)
    misplaced = ~(np.abs(factors - wanted) <= off * wanted + 1e-37)
    if misplaced.any():
        row, block = np.argwhere(misplaced)[0]
        return f"the scale of row {row}, block {block} is {factors[row, block]:.6g}, not {wanted[row, block]:.6g}"
    steps = spread(factors, tensor)
    quotients = original / steps
    most = E4M3_MAX if quantization.scheme == "fp8" else E2M1_MAX
    inside = np.clip(quotients, -most, most)
    # A rounded scale may put the largest element beyond the largest number, which it then becomes.
    error = np.abs(numbers - inside)
    beyond = ~(error <= (0.5 + _SLACK) * spacing(inside, quantization.bits))
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        return (
            f"row {row}, column {column} is {numbers[row, column]:g} times its scale, and the original is "
            f"{quotients[row, column]:.6g} times it"
        )
    return None


def _wanted_scales(quantization: Quantization, name: str, original: Array) -> tuple[Array, Array | float]:
    """Return the scales ``(out, blocks)``, and by which share they may differ."""
    tensor, magnitudes = quantization.tensors[name], np.abs(original).astype(np.float64)
    if quantization.scheme == "fp8":
        return np.full((tensor.shape[0], 1), max(magnitudes.max() / E4M3_MAX, 2.0**-126)), _SCALE_SLACK
    whole = magnitudes.max() / NVFP4_SPAN or 1.0
    largest = magnitudes.reshape(tensor.shape[0], tensor.blocks, -1).max(axis=-1)
    factors = np.where(largest == 0, 1.0, largest / (E2M1_MAX * whole)).clip(E4M3_LEAST, E4M3_MAX)
    half = spacing(factors, 8) / 2 / factors  # a block's scale is rounded to E4M3
    return factors * whole, half + _SCALE_SLACK

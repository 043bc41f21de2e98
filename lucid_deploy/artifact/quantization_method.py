"""How the whole numbers of a quantized artifact were chosen, as its manifest records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAREST, K_QUANT, HQQ, AWQ, GPTQ, AUTO = "rtn", "k_quant", "hqq", "awq", "gptq", "auto"
METHODS = (NEAREST, K_QUANT, HQQ, AWQ, GPTQ, AUTO)  # that an export may be asked for
STORED = "stored"  # taken over from a checkpoint that was quantized already


def relative_distance(rounded: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Return ‖Ŵ − W‖ / ‖W‖ of Frobenius norms; 0 where both are zero, and infinite where W alone is."""
    lost, whole = float(np.linalg.norm(rounded - weight)), float(np.linalg.norm(weight))
    if whole == 0:
        return 0.0 if lost == 0 else float("inf")
    return lost / whole


@dataclass(frozen=True)
class LearnedTensor:
    """What choosing a weight's numbers by data came to. All three are ratios of Frobenius norms.

    Attributes:
        distance: :func:`relative_distance` of the dequantized weight Ŵ; ``verify`` computes it again. With ``awq`` from
            the weight with its inputs' scales, see :mod:`lucid_deploy.artifact.folded_scales`.
        output_error: The same of the product's outputs over the calibration rows, against the exact model's; the
            errors of its inputs are in it.
        nearest_error: That of the outputs had this weight been rounded to nearest.
    """

    distance: float
    output_error: float
    nearest_error: float


@dataclass(frozen=True)
class Method:
    """The manifest's record.

    Attributes:
        name: One of :data:`METHODS`, or :data:`STORED`.
        settings: The method's own settings; of numbers taken over, the ``layout`` they were stored in.
        calibration: Of the text that was learned from: ``file``, ``sha256``, ``tokens``, ``rows``, ``row_tokens``,
            ``seed``; empty where none was needed.
        tensors: Weights whose numbers data chose, by the checkpoint's names; others are rounded to nearest.
    """

    name: str = NEAREST
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Method:
        """Read the record.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is damaged.
        """
        if data["name"] not in (*METHODS, STORED):
            raise ValueError(f"quantization's method is {data['name']!r}")
        tensors = {name: LearnedTensor(**entry) for name, entry in data["tensors"].items()}
        return cls(data["name"], dict(data["settings"]), dict(data["calibration"]), tensors)

"""GPTQ: round a weight's columns one after the other, and let the remaining ones compensate for each error.

A linear layer y = W x has, over inputs with second moments H = mean(x xᵀ), the mean squared error tr(E H Eᵀ) for an
error E of its weight. Once a column is rounded, the best change of the columns that are left follows from the inverse
of H; with U the upper Cholesky factor of H⁻¹ it is row by row of U (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ",
arXiv 2210.17323, algorithm 1). Every row of W is treated alike and by itself.

Own code: the libraries that have this algorithm take models of transformers only, and onnxruntime's passes on no error.
Tests hold it to the definition, and to the numbers of the package ``auto-gptq``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.inputs import InputMoments, ProductErrors
from lucid_deploy.export.quantize.learn import learn_weights
from lucid_deploy.export.quantize.method import Choose, LearningRule, QuantizationMethod, Target
from lucid_deploy.export.quantize.scales import number_range, search_scales

if TYPE_CHECKING:
    import torch

    from lucid_deploy.export.quantize.options import QuantizeOptions

_LAZY = 128  # columns after which all remaining columns are updated: one large product
_NEAR = 16  # columns after which the rest of these 128 are updated: the innermost loop touches at most 16
_ELEMENTS = 1 << 23  # of a matrix rounded together


@dataclass(frozen=True)
class GptqSettings:
    """Settings of GPTQ."""

    damping: float = 0.01  # share of the mean of H's diagonal that is added to it
    activation_order: bool = True  # whether columns are rounded in the order of their inputs' second moments


@dataclass(frozen=True)
class ColumnOrder:
    """The order in which columns are rounded, and how their errors spread."""

    columns: torch.Tensor  # int64 (in,): the first is rounded first
    factor: torch.Tensor  # upper Cholesky factor U of the inverse of the damped H in that order, float64 (in, in)

    def divided(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows``, ``(out, in)``, times the inverse of the damped H, which is Uᵀ U in this order; float64."""
        import torch

        found = torch.empty(rows.shape, dtype=torch.float64)
        found[:, self.columns] = rows[:, self.columns].double() @ self.factor.mT @ self.factor
        return found


def column_order(hessian: torch.Tensor, damping: float, by_size: bool) -> ColumnOrder:
    """Factor the second moments of a layer's inputs.

    Args:
        damping: Share of the mean of its diagonal that is added to the diagonal.
        by_size: Round the inputs of largest second moment first ("activation order"); otherwise as they stand.
    """
    import torch

    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1  # an input that was always zero, without damping
    columns = torch.argsort(diagonal, descending=True, stable=True) if by_size else torch.arange(len(diagonal))
    ordered = damped[columns][:, columns]
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
        factor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise LucidError(
            "The inputs of a layer are so alike over the calibration text that their second moments cannot be "
            "inverted. Give more text, or a larger --gptq-damping."
        ) from error
    return ColumnOrder(columns, factor)


def round_columns(
    weight: torch.Tensor, scales: torch.Tensor, order: ColumnOrder, limits: tuple[int, int]
) -> torch.Tensor:
    """Round a weight to whole multiples of its scales.

    Args:
        weight: Float32 or float64 ``(out, in)``; computed in this type.
        scales: Of every element, ``(out, in)``, same type.
    """
    import torch

    factor = order.factor.to(weight.dtype)
    step = max(_ELEMENTS // weight.shape[1], 1)
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        values, steps = weight[rows].mT[order.columns], scales[rows].mT[order.columns]  # (in, rows), contiguous columns
        numbers[rows, order.columns] = _round_ordered(values, steps, factor, limits).mT
    return numbers


def _round_ordered(
    weight: torch.Tensor, scales: torch.Tensor, factor: torch.Tensor, limits: tuple[int, int]
) -> torch.Tensor:
    """Round columns that are in order, ``(in, rows)``; ``weight`` is overwritten.

    Each column's error changes the columns after it. The next few are updated at once, the others later with
    several errors together, as products of matrices.
    """
    import torch

    width = len(weight)
    numbers, errors = torch.empty(weight.shape, dtype=torch.int8), torch.empty_like(weight[:_LAZY])
    for start in range(0, width, _LAZY):
        end = min(start + _LAZY, width)
        for first in range(start, end, _NEAR):
            last = min(first + _NEAR, end)
            for column in range(first, last):
                value, scale, error = weight[column], scales[column], errors[column - start]
                number = (value / scale).round_().clamp_(*limits)
                torch.addcmul(value, number, scale, value=-1, out=error).div_(factor[column, column])
                weight[column + 1 : last].addr_(factor[column, column + 1 : last], error, alpha=-1)
                numbers[column] = number
            _spread(weight[last:end], factor[first:last, last:end], errors[first - start : last - start])
        _spread(weight[end:], factor[start:end, end:], errors[: end - start])
    return numbers


def _spread(left: torch.Tensor, factor: torch.Tensor, errors: torch.Tensor) -> None:
    """Update the remaining columns by the errors of some before them."""
    if len(left):
        left.addmm_(factor.mT, errors, alpha=-1)


class GptqRule(LearningRule):
    """Round each weight column by column.

    What is rounded is not the weight itself, but the weight whose outputs on the rounded model's inputs are nearest to
    the exact outputs.
    """

    name = "gptq"

    def __init__(self, settings: GptqSettings | None = None) -> None:
        self._settings = settings or GptqSettings()
        self.settings = vars(self._settings).copy()

    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        assert scale is None
        order = column_order(moments.x_x, self._settings.damping, self._settings.activation_order)

        def choose(weight: torch.Tensor, target: Target, errors: ProductErrors) -> tuple[torch.Tensor, torch.Tensor]:
            scales = search_scales(weight, target.tensor, target.bits, target.dtype, target.positive)
            spread = scales.repeat_interleave(target.tensor.block_size, dim=1)[:, : weight.shape[1]]
            return round_columns(
                errors.target(order), spread, order, number_range(target.bits, target.positive)
            ), scales

        return choose


def rule(options: QuantizeOptions) -> GptqRule:
    """Return the rule with an export's settings."""
    return GptqRule(GptqSettings(options.gptq_damping, options.gptq_order == "activation"))


class Gptq(QuantizationMethod):
    """``--method gptq``."""

    name = "gptq"
    learns = True
    options = frozenset({"tokens", "damping", "order"})

    def learn(self, checkpoint, quantization, rows, options, dtype, progress):  # type: ignore[no-untyped-def]
        return learn_weights(checkpoint, quantization, rows, rule(options), dtype, progress)


METHOD = Gptq()

"""GPTQ: round a weight's columns one after the other, and let the remaining ones compensate for each error.

A linear layer y = W x has, over inputs with second moments H = mean(x xᵀ), the mean squared error tr(E H Eᵀ) for an
error E of its weight. Once a column is rounded, the best change of the columns that are left follows from the inverse
of H; with U the upper Cholesky factor of H⁻¹ it is row by row of U (Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ",
arXiv 2210.17323, algorithm 1). Every row of W is treated alike and by itself. Columns of the largest inputs come first.

H is that of the exact model: the text runs through it once, layer by layer. (In the paper a layer sees the inputs that
rounded layers before it give. On text of another kind than was learned from, that was worse than not learning at all.)
Where blocks have offsets, scales and offsets are those of HQQ, else those of nearest numbers.

Own code: the libraries that have this algorithm take models of transformers only, and onnxruntime's knows no offsets.
Tests hold it to the definition, and to the numbers of the package ``auto-gptq``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import LearnedTensor, Method, QuantizedTensor, relative_distance
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.hqq import hqq_matrix
from lucid_deploy.export.quantize.inputs import (
    ExpertMoments,
    add_moments,
    embedded,
    final_norm,
    inputs_of,
    load_layer,
    run_layer,
    shared_inputs,
)
from lucid_deploy.export.quantize.method import LearnedWeights, QuantizationMethod, Rounded
from lucid_deploy.export.quantize.nearest import METHOD as NEAREST
from lucid_deploy.export.quantize.nearest import pack_numbers
from lucid_deploy.export.quantize.plan import HEAD

if TYPE_CHECKING:
    import torch

    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.method import Progress
    from lucid_deploy.model.checkpoint import Checkpoint

DAMPING = 0.01  # share of the mean of H's diagonal that is added to it
BATCH = 8  # rows that are run together
_LAZY = 128  # columns after which all remaining columns are updated: one large product
_NEAR = 16  # columns after which the rest of these 128 are updated: the innermost loop touches at most 16
_ELEMENTS = 1 << 23  # of a matrix rounded together


@dataclass(frozen=True)
class ColumnOrder:
    """The order in which columns are rounded, and how their errors spread."""

    columns: torch.Tensor  # int64 (in,): the first is rounded first
    factor: torch.Tensor  # upper Cholesky factor U of the inverse of the damped H in that order, float64 (in, in)


def column_order(hessian: torch.Tensor, damping: float = DAMPING) -> ColumnOrder:
    """Order a layer's inputs, the largest second moment first, and factor their second moments, float64 (in, in)."""
    import torch

    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1  # an input that was always zero, without damping
    columns = torch.argsort(diagonal, descending=True, stable=True)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[columns][:, columns]))
        factor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise LucidError(
            "The inputs of a layer are so alike over the calibration text that their second moments cannot be "
            "inverted. Give more text."
        ) from error
    return ColumnOrder(columns, factor)


def round_columns(
    weight: torch.Tensor, scales: torch.Tensor, order: ColumnOrder, limits: tuple[int, int]
) -> torch.Tensor:
    """Round a weight to whole multiples of its scales.

    Args:
        weight: Float32 or float64 ``(out, in)``; computed in this type.
        scales: Of every element, ``(out, in)``, same type.
        limits: The least and the greatest whole number.

    Returns:
        Int8 ``(out, in)``.
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


def round_weight(
    weight: torch.Tensor, order: ColumnOrder | None, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
) -> tuple[Rounded, torch.Tensor]:
    """Quantize a weight, float32 ``(out, in)``; return its parts, and the weight that they stand for.

    Args:
        order: None: to the nearest numbers, as without a text.

    The others are those of :meth:`~lucid_deploy.export.quantize.method.QuantizationMethod.round`.
    """
    import torch

    def of_elements(of_blocks: torch.Tensor) -> torch.Tensor:
        return of_blocks.repeat_interleave(tensor.block_size, dim=1)[:, : weight.shape[1]]

    if tensor.offsets:
        _, scales, offsets = hqq_matrix(weight, tensor, bits, dtype)
    else:
        nearest = NEAREST.round(weight, tensor, bits, dtype, positive)
        scales = torch.cat([torch.as_tensor(rows.scales) for rows in nearest])
        scales, offsets = scales.to(getattr(torch, dtype)).float(), torch.zeros_like(scales)
    high = (1 << (bits - 1)) - 1
    used = torch.where(scales == 0, torch.ones_like(scales), scales)  # of a block of zeros
    moved, limits = weight - of_elements(offsets), (-high if positive else -high - 1, high)
    if order is None:
        numbers = (moved / of_elements(used)).round_().clamp_(*limits).to(torch.int8)
    else:
        numbers = round_columns(moved, of_elements(used), order, limits)
    found = numbers * of_elements(scales) + of_elements(offsets)
    packed = pack_numbers(numbers.numpy(), tensor, bits)
    return Rounded(packed, scales, offsets=offsets if tensor.offsets else None), found


def _joined(rounded: list[Rounded]) -> Rounded:
    """Join matrices that stand one below the other."""
    import torch

    offsets = None if rounded[0].offsets is None else torch.cat([each.offsets for each in rounded])
    packed = np.concatenate([each.packed for each in rounded])
    return Rounded(packed, torch.cat([each.scales for each in rounded]), offsets)


class Gptq(QuantizationMethod):
    """``--method gptq``."""

    name = "gptq"
    learns = True
    offsets = ("matmulnbits",)

    def learn(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        rows: CalibrationRows,
        dtype: str,
        progress: Progress | None,
    ) -> tuple[LearnedWeights, Quantization]:
        import torch

        config, learned, unseen = checkpoint.config, LearnedWeights(), list[bool]()
        layers = config.num_hidden_layers
        progress = progress or (lambda *_: None)

        def choose(names: list[str], orders: list[ColumnOrder | None]) -> None:
            """Round the weights that read one input; of experts each matrix has an order of its own."""
            for name in names:
                tensor, bits = quantization.tensors[name], quantization.bits_of(name)
                weight = tensor.matrix(checkpoint.tensor(name)).float()
                if not weight.isfinite().all():
                    raise LucidError(f"{checkpoint.directory}: {name} has values that are not finite: it is damaged.")
                target = bits, tensor.scale_dtype or dtype, quantization.has_positive_scales(name)
                rounded, found = [], []
                for matrix, order in zip(weight.chunk(len(orders)), orders, strict=True):
                    one = replace(tensor, shape=tuple(matrix.shape), experts=0)
                    parts, values = round_weight(matrix, order, one, *target)
                    rounded.append(parts)
                    found.append(values)
                learned.parts[name] = _joined(rounded)
                distance = relative_distance(torch.cat(found).double().numpy(), weight.double().numpy())
                learned.tensors[name] = LearnedTensor(float(f"{distance:.7g}"))

        def orders_of(moments: ExpertMoments, name: str, tensor: QuantizedTensor) -> list[ColumnOrder | None]:
            """Return the order for each expert; None where fewer tokens chose it than its inputs have elements."""
            chosen = [moments.tokens[name, index] >= tensor.shape[1] for index in range(tensor.experts)]
            unseen.extend(not enough for enough in chosen)
            return [column_order(moments.pop(name, index)) if enough else None for index, enough in enumerate(chosen)]

        with torch.inference_mode():
            batches = [part for ids in rows.rows for part in np.array_split(ids, -(-len(ids) // BATCH))]
            streams = embedded(checkpoint, batches)
            for index in range(layers):
                progress("Calibrating", index, layers + 1)
                layer, prefix = load_layer(checkpoint, index), f"model.layers.{index}."

                def run(x: torch.Tensor, layer: torch.nn.Module = layer, index: int = index) -> torch.Tensor:
                    return run_layer(layer, config, index, x)[0]

                every = shared_inputs(layer, run, streams[0])
                parts = [
                    [part for part in group if f"{prefix}{part}.weight" in quantization.tensors] for group in every
                ]
                parts = [group for group in parts if group]
                readers = [layer.get_submodule(group[0]) for group in parts]
                moments: list[torch.Tensor | None] = [None] * len(parts)
                of_experts = ExpertMoments(layer)
                for place, x in enumerate(streams):
                    inputs, streams[place] = inputs_of(readers, run, x)
                    moments = [add_moments(total, each) for total, each in zip(moments, inputs, strict=True)]
                for group, total in zip(parts, moments, strict=True):
                    choose([f"{prefix}{part}.weight" for part in group], [column_order(total / rows.tokens)])
                for name, tensor in quantization.tensors.items():
                    if tensor.experts and name.startswith(prefix):
                        choose([name], orders_of(of_experts, name.removeprefix(prefix), tensor))
            progress("Calibrating", layers, layers + 1)
            if HEAD in quantization.tensors:
                total = None
                for x in streams:
                    total = add_moments(total, final_norm(checkpoint, x))
                choose([HEAD], [column_order(total / rows.tokens)])
            progress("Calibrating", layers + 1, layers + 1)
        settings: dict[str, Any] = {"damping": DAMPING}
        if unseen:
            settings |= {"experts": len(unseen), "experts_without_text": sum(unseen)}
        return learned, replace(quantization, method=Method(self.name, settings, rows.facts, learned.tensors))


METHOD = Gptq()

"""Two more questions about a quantized artifact: are its weights the checkpoint's, and what did rounding them cost?

That the runtime computes the quantized model is the ordinary verification's question; its reference is the model on the
artifact's own, dequantized weights. So it would not notice if these were another model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.folded_scales import read_scales, scaled
from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_method import AWQ, STORED, relative_distance
from lucid_deploy.artifact.quantization_names import LEAST_SCALE
from lucid_deploy.artifact.quantized_bytes import dequantize, spread, unpack
from lucid_deploy.artifact.quantized_tensor import QuantizedTensor
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export.rounding.scales import NARROWEST, WIDEST, number_range
from lucid_deploy.model.scenarios import ONE_SHOT, equal_lengths
from lucid_deploy.parity.measure import phases
from lucid_deploy.parity.measure.compare import TensorId, Trace, record, record_at_once_together
from lucid_deploy.parity.measure.float_weights import float_difference
from lucid_deploy.parity.measure.folding import check_folding
from lucid_deploy.parity.measure.metrics import kl_divergence, position_errors
from lucid_deploy.parity.measure.plain_weights import check_plain_weights, plain_names
from lucid_deploy.parity.measure.progress import CallCounter, Progress
from lucid_deploy.parity.measure.targets import Targets
from lucid_deploy.runtimes.session import Array, Session

if TYPE_CHECKING:
    import torch

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.model.checkpoint import Checkpoint

# Of a step; float32 arithmetic in the quantizer may move a number that lies half way.
_SLACK = 1e-3
# Scales are stored with 8 bits of mantissa at least; the recorded distance has 7 digits, of sums in another order.
_SCALE_SLACK, _DISTANCE_SLACK = 1 - 2.0**-7, 1e-5
# Half a unit in the last place of the smallest scales: in float16 those below 2^-14 are multiples of 2^-24.
_SCALE_STEP = {"float16": 2.0**-25}


@dataclass(frozen=True)
class LogitDifference:
    """Logits beside those of the original checkpoint in float64, over all positions of all scenarios.

    Attributes:
        relative_error: Relative L2 error, mean over positions.
        relative_error_max: The same of the worst position.
        top1_agreement: Share of positions at which both prefer the same token.
        kl_mean: Kullback-Leibler divergence from the original, in nats, mean over positions.
        kl_max: The same of the worst position.
        positions: Positions compared.
    """

    relative_error: float
    relative_error_max: float
    top1_agreement: float
    kl_mean: float
    kl_max: float
    positions: int


@dataclass(frozen=True)
class QuantizationCost:
    """What quantization cost; reported, not judged.

    Attributes:
        weights: Of rounding the weights alone: the dequantized model in float64.
        as_run: Of everything: the artifact as the runtime runs it.
    """

    weights: LogitDifference
    as_run: LogitDifference

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def lines(self, record: Quantization, dtype: str) -> list[str]:
        """Return the result for people; ``dtype`` is that of the artifact's scales."""
        bits = f"{record.bits_per_weight(dtype):.4g} bits a weight"
        return [
            f"Cost of quantization ({record.scheme}, {record.method.name}, {bits}, {record.sharing}, "
            f"{record.inputs}) against the original checkpoint in float64; reported, not judged:",
            f"  weights alone: {_sentence(self.weights)}",
            f"  as run: {_sentence(self.as_run)}",
        ]


def check_weights(artifact: Artifact, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
    """Check that a quantized artifact's weights are the checkpoint's.

    Of a quantized weight, every element must be within half a step (the block's scale; of floating-point numbers the
    distance between neighbours) of the original; one step where it was clipped; and the block's element of largest
    magnitude must be where the scheme puts it. If data chose its numbers, they need not be the nearest: then its scales
    must be in the range that is searched, and its distance from the original the recorded one. Numbers that were taken
    over must be the very same. Other weights must be the original ones in the artifact's type. Where AWQ has put scales
    into weights, the original is the checkpoint's weight with these scales, which must cancel.

    Args:
        artifact: A quantized artifact.
        checkpoint: What it was exported from.
        progress: Called with (what is being done, weights checked, in all).

    Raises:
        CheckFailed: A weight is not.
    """
    from lucid_deploy.runtimes.torch.artifact_weights import stored_parts

    quantization = artifact.manifest.quantization
    assert quantization is not None
    total = len(quantization.tensors) + len(plain_names(artifact, checkpoint))
    meter, folded = CallCounter(progress, phases.WEIGHTS, total), read_scales(artifact.directory)
    if folded and quantization.method.name != AWQ:
        raise CheckFailed(f"{artifact.directory} has scales of AWQ, and its numbers were chosen by another method.")
    if folded:
        check_folding(folded, checkpoint)
    for name, *parts in stored_parts(artifact):
        weight = scaled(checkpoint.tensor(name), name, folded)
        problem = _problem(quantization, name, parts, weight, artifact.manifest.dtype)
        if problem:
            raise CheckFailed(f"{artifact.directory}: {name} is not the checkpoint's weight quantized: {problem}.")
        meter.tick()
    check_plain_weights(artifact, checkpoint, folded, meter.tick)


def _problem(quantization: Quantization, name: str, parts: list[Array], weight: torch.Tensor, dtype: str) -> str | None:
    """Say what is wrong with a quantized weight, by the way its numbers were chosen; None if it is right."""
    if quantization.method.name == STORED:
        wrong = dequantize(quantization, name, *parts) != weight.double().numpy()
        return f"{wrong.sum()} elements are other numbers" if wrong.any() else None
    if quantization.is_float:
        return float_difference(quantization, name, parts[0], parts[1], weight.float().numpy())
    if quantization.tensors[name].zero_points or quantization.tensors[name].offsets:
        return _fitted_difference(quantization, name, parts, weight.float().numpy(), dtype)
    check = _learned_difference if name in quantization.method.tensors else _difference
    return check(quantization, name, parts[0], parts[1], weight.float().numpy(), dtype)


def _difference(
    quantization: Quantization, name: str, packed: Array, scales: Array, original: Array, dtype: str
) -> str | None:
    """Say what is wrong with a quantized weight; None if it is right."""
    tensor = quantization.tensors[name]
    numbers, factors = unpack(quantization, name, packed, scales)
    numbers = numbers.astype(np.int16)  # -128 has no magnitude in int8
    high, positive = (1 << (quantization.bits_of(name) - 1)) - 1, quantization.has_positive_scales(name)
    top = high if positive else high + 1  # the largest element's magnitude, as a whole number
    # A scale in half precision is rounded, and every number with it.
    relative, least = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 2.0**-22), _SCALE_STEP.get(dtype, 0.0)
    width = original.shape[1]
    padded = np.pad(np.abs(original), ((0, 0), (0, -width % tensor.block_size)))
    largest = padded.reshape(len(original), tensor.blocks, -1).max(axis=-1)
    if positive:
        largest = np.maximum(largest, top * LEAST_SCALE[dtype])
    misplaced = ~(np.abs(np.abs(factors) * top - largest) <= top * (relative * np.abs(factors) * 1.01 + least) + 1e-30)
    if misplaced.any():
        row, block = np.argwhere(misplaced)[0]
        return (
            f"the scale of row {row}, block {block} is {factors[row, block]:.6g}, the original's largest element "
            f"{largest[row, block]:.6g} asks for ±{largest[row, block] / top:.6g}"
        )
    steps = spread(np.abs(factors), tensor)
    error = np.abs(numbers * spread(factors, tensor) - original)
    rounding = np.abs(numbers) * (relative * steps + least)
    allowed = np.where((numbers == high) & (top > high), 1.0, 0.5 + _SLACK) * steps + rounding + least
    beyond = ~(error <= allowed)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        return (
            f"row {row}, column {column} is off by {error[row, column]:.3g}, which is "
            f"{error[row, column] / max(steps[row, column], 1e-300):.2g} steps"
        )
    return None


def _fitted_difference(
    quantization: Quantization, name: str, parts: list[Array], original: Array, dtype: str
) -> str | None:
    """Say what is wrong with a weight that has zero points or offsets; None if it is right.

    Within the numbers' range every element is half a step off at most. What lies beyond is clipped: by two steps at
    most, since the range of a block is fitted to it. In half precision the scale is rounded after the numbers.
    """
    tensor, half = quantization.tensors[name], 1 << (quantization.bits_of(name) - 1)
    numbers, factors = unpack(quantization, name, *parts)
    stored = unpack(quantization, name, *parts[:2])[0]
    steps = spread(np.abs(factors), tensor)
    relative, least = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 2.0**-22), _SCALE_STEP.get(dtype, 0.0)
    error = np.abs(numbers * spread(factors, tensor) - original)
    rounding = np.abs(numbers) * (relative * steps + least)
    coarse = np.abs(factors) > _coarsest(original, tensor, 2 * half - 1) + 2 * LEAST_SCALE[dtype]
    if coarse.any():
        row, block = np.argwhere(coarse)[0]
        return f"the scale of row {row}, block {block} is {factors[row, block]:.6g}, coarser than its range asks for"
    clipped = (stored == -half) | (stored == half - 1)
    beyond = ~(error <= np.where(clipped, 2.0, 0.5 + _SLACK) * steps + rounding + least)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        return f"row {row}, column {column} is off by {error[row, column] / max(steps[row, column], 1e-300):.2g} steps"
    return None


def _coarsest(original: Array, tensor: QuantizedTensor, top: int) -> Array:
    """Return the largest scale that each block may have; any for blocks of zeros, whose numbers say what they are.

    Symmetric numbers of a range on one side of zero need scales twice as large as its width asks for, and a fitted one
    may be a quarter larger.
    """
    padded = np.pad(original, ((0, 0), (0, -original.shape[1] % tensor.block_size)))
    blocks = padded.reshape(len(original), tensor.blocks, -1)
    span = np.maximum(blocks.max(axis=-1), 0) - np.minimum(blocks.min(axis=-1), 0)
    return np.where(span > 0, 2.5 * span / top, np.inf)


def _learned_difference(
    quantization: Quantization, name: str, packed: Array, scales: Array, original: Array, dtype: str
) -> str | None:
    """Say what is wrong with a weight whose numbers data chose; None if it is right."""
    tensor, recorded = quantization.tensors[name], quantization.method.tensors[name]
    numbers, factors = unpack(quantization, name, packed, scales)
    low, high = number_range(quantization.bits_of(name), quantization.has_positive_scales(name))
    padded = np.pad(np.abs(original), ((0, 0), (0, -original.shape[1] % tensor.block_size)))
    fits = padded.reshape(len(original), tensor.blocks, -1).max(axis=-1) / max(-low, high)
    least = LEAST_SCALE[dtype]
    step = _SCALE_STEP.get(dtype, 0.0)
    within = (np.abs(factors) >= NARROWEST * _SCALE_SLACK * fits - step) & (
        np.abs(factors) <= np.maximum(WIDEST * fits, least) / _SCALE_SLACK + step
    )
    if not within.all():
        row, block = np.argwhere(~within)[0]
        return (
            f"the scale of row {row}, block {block} is {factors[row, block]:.6g}, and the original's largest element "
            f"asks for {NARROWEST:g} to {WIDEST:g} times ±{fits[row, block]:.6g}"
        )
    distance = relative_distance(numbers * spread(factors, tensor), original.astype(float))
    if not abs(distance - recorded.distance) <= _DISTANCE_SLACK * recorded.distance:
        return f"it is {distance:.6g} of the original's norm away from it, and {recorded.distance:.6g} is recorded"
    return None


def measure_cost(
    original: Callable[[], Session[Any]], candidate: Session[Any], targets: Targets, progress: Progress | None = None
) -> QuantizationCost:
    """Compare logits with those of the original checkpoint, one-shot prefill and forced decoding in every scenario.

    Args:
        original: Opens the original in float64.
        candidate: The artifact in its runtime.
        targets: What the dequantized model computed in float64.
        progress: Called with (what runs, session calls done, in all).
    """
    groups = equal_lengths([target.scenario for target in targets.items])
    meter = CallCounter(progress, phases.COST, sum(2 + ONE_SHOT.calls(group[0]) * len(group) for group in groups))
    session, wanted = original(), {}
    for group in groups:
        traces = record_at_once_together(session, group, meter.tick)
        wanted.update({scenario.name: _logits(trace) for scenario, trace in zip(group, traces, strict=True)})
    del session
    ordered = [wanted[target.scenario.name] for target in targets.items]
    exact = [_logits(target.reference) for target in targets.items]
    as_run = [_logits(record(candidate, target.scenario, tick=meter.tick)) for target in targets.items]
    return QuantizationCost(_difference_of(exact, ordered), _difference_of(as_run, ordered))


def _logits(trace: Trace) -> Array:
    tensor: TensorId = max(trace.tensors)  # the logits come last
    return trace.tensors[tensor].values


def _difference_of(found: list[Array], wanted: list[Array]) -> LogitDifference:
    errors = np.concatenate([position_errors(a, b) for a, b in zip(found, wanted, strict=True)])
    divergence = np.concatenate([kl_divergence(a, b).reshape(-1) for a, b in zip(found, wanted, strict=True)])
    same = np.concatenate([(a.argmax(-1) == b.argmax(-1)).reshape(-1) for a, b in zip(found, wanted, strict=True)])
    return LogitDifference(
        relative_error=float(errors.mean()),
        relative_error_max=float(errors.max()),
        top1_agreement=float(same.mean()),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        positions=int(same.size),
    )


def _sentence(loss: LogitDifference) -> str:
    return (
        f"logits off by {loss.relative_error:.2%} on average, {loss.relative_error_max:.2%} at most; top-1 token the "
        f"same at {loss.top1_agreement:.1%} of {loss.positions} positions; KL divergence {loss.kl_mean:.1e} nats on "
        f"average, {loss.kl_max:.1e} at most"
    )

"""Where an artifact's quantized numbers come from: a method, calibration text, or a checkpoint that has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantization import STORED, Quantization
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.options import QuantizeOptions, check_options
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.export.quantize.registry import find_method
from lucid_deploy.export.quantize.stored import plan_stored, resolve_stored

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.method import LearnedWeights, Progress
    from lucid_deploy.model.checkpoint import Checkpoint


def settle_options(source: Checkpoint, options: QuantizeOptions | None, dtype: str) -> QuantizeOptions | None:
    """Return the options with what a quantized checkpoint makes of them; None: nothing is quantized."""
    found = resolve_stored(source, options)
    if found is not None:
        check_options(found, dtype)
    return found


def plan_numbers(source: Checkpoint, options: QuantizeOptions, dtype: str) -> Quantization:
    """Choose what is quantized."""
    if options.scheme == STORED:
        return plan_stored(source, options, dtype)
    return plan_quantization(source.stored_shapes(), source.tied, options)


def rows_to_learn_from(
    source: Checkpoint, options: QuantizeOptions, quantization: Quantization, calibration: Path | None
) -> CalibrationRows | None:
    """Read the text that weights are learned from; None for a method that does not learn."""
    if not options.learns:
        return None
    if calibration is None:
        raise LucidError(
            f"--method {options.method} learns from text like what the model will read. Give such a file with "
            "--calibration, or use --method rtn."
        )
    from lucid_deploy.export.calibration import ROW, calibration_rows

    method = find_method(options.method)
    widest = max(tensor.shape[1] for tensor in quantization.tensors.values())  # fewer tokens give singular moments
    row = min(ROW, source.config.max_position_embeddings)
    most = max(options.calibration_tokens, method.tokens_needed(row, widest))
    rows = calibration_rows(source, calibration, most, widest)
    method.check_rows(rows, widest)
    return rows


def learned_numbers(
    source: Checkpoint,
    options: QuantizeOptions | None,
    quantization: Quantization | None,
    rows: CalibrationRows | None,
    dtype: str,
    progress: Progress | None = None,
) -> tuple[Quantization | None, LearnedWeights | None]:
    """Learn the numbers if the method learns; return the record with the method, and the numbers."""
    if options is None or quantization is None or rows is None:
        return quantization, None
    learned, found = find_method(options.method).learn(source, quantization, rows, options, dtype, progress)
    return found, learned

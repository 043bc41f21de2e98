"""Where the whole numbers of an artifact come from: rounded to nearest, learned from text, or taken over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_method import AUTO, AWQ, STORED
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize import plan_quantization
from lucid_deploy.export.quantize_options import QuantizeOptions, check_options
from lucid_deploy.export.stored import plan_stored, resolve_stored

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.rounding.method import LearnedWeights, LearningMethod
    from lucid_deploy.model.checkpoint import Checkpoint

Progress = Callable[[str, int, int], None]


def settle_options(source: Checkpoint, options: QuantizeOptions | None, dtype: str) -> QuantizeOptions | None:
    """Return the options with what a quantized checkpoint makes of them; None: nothing is quantized.

    Raises:
        LucidError: They do not fit the checkpoint, or each other.
    """
    found = resolve_stored(source, options)
    if found is not None:
        check_options(found, dtype)
    return found


def plan_numbers(source: Checkpoint, options: QuantizeOptions, dtype: str) -> Quantization:
    """Choose what is quantized.

    Raises:
        LucidError: As :func:`plan_quantization` and :func:`plan_stored`.
    """
    if options.scheme == STORED:
        return plan_stored(source, options, dtype)
    return plan_quantization(source.stored_shapes(), source.tied, options)


def rows_to_learn_from(
    source: Checkpoint, options: QuantizeOptions, quantization: Quantization, calibration: Path | None
) -> CalibrationRows | None:
    """Read what weights are learned from; None where they are not.

    Raises:
        LucidError: There is no text, or as :func:`calibration_rows`, or with ``auto`` as :func:`split_rows`.
    """
    if not options.learns:
        return None
    if calibration is None:
        raise LucidError(
            f"--method {options.method} learns from text like what the model will read. Give such a file with "
            "--calibration, or use --method rtn."
        )
    from lucid_deploy.export.calibration import ROW, calibration_rows
    from lucid_deploy.export.rounding.automatic import split_rows, tokens_needed, widest_input

    least, most = widest_input(quantization), options.calibration_tokens
    if options.method != AUTO:
        return calibration_rows(source, calibration, most, least)
    row = min(ROW, source.config.max_position_embeddings)
    rows = calibration_rows(source, calibration, max(most, tokens_needed(row, least)), least)
    split_rows(rows, least)  # before anything that takes time: the text may be too short
    return rows


def learning_method(options: QuantizeOptions) -> LearningMethod:
    """Return the method that learns, of options that ask for one; ``auto`` is GPTQ with bits that are chosen too."""
    from lucid_deploy.export.rounding.gptq import GptqSettings
    from lucid_deploy.export.rounding.method import Awq, Gptq

    if options.method == AWQ:
        return Awq()
    return Gptq(GptqSettings(options.gptq_damping, options.gptq_order == "activation"))


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
    method = learning_method(options)
    if options.target_bits is None:
        from lucid_deploy.export.rounding.learn import learn_weights

        learned, found = learn_weights(source, quantization, rows, method, dtype, progress)
    else:
        from lucid_deploy.export.rounding.automatic import learn_mixed

        learned, found = learn_mixed(source, quantization, rows, method, dtype, options.target_bits, progress)
    return found, learned

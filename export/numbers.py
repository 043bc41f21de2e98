"""Where the whole numbers of an artifact come from: rounded to nearest, learned from text, or taken over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_method import AUTO, AWQ, STORED
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize import plan_quantization
from lucid_deploy.export.quantize_options import QuantizeOptions, check_options
from lucid_deploy.export.stored import plan_stored, resolve_stored
from lucid_deploy.files import remove_resumable, resumable_directory

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.rounding.method import LearningMethod
    from lucid_deploy.export.rounding.unfinished import LearnedWeights
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


@contextmanager
def learned_numbers(
    source: Checkpoint,
    options: QuantizeOptions | None,
    quantization: Quantization | None,
    rows: CalibrationRows | None,
    dtype: str,
    output: Path,
    progress: Progress | None = None,
) -> Iterator[tuple[Quantization | None, LearnedWeights | None]]:
    """Learn the numbers, if any are; yield the record with its method, and the numbers.

    What is found is kept beside the output until the block ends, so that the same export goes on with it after an
    interruption, a full disk, or an error that came later than learning; what is raised then has a note that says so
    (``__notes__``). An error of learning itself would come again: it removes what was found.
    """
    if options is None or quantization is None or rows is None:
        yield quantization, None
        remove_resumable(output)  # of an export to this place that learned and was interrupted
        return
    from lucid_deploy.export.rounding.learn import learn_weights
    from lucid_deploy.export.rounding.unfinished import UnfinishedLearning, learning_key

    method = learning_method(options)
    settings = {"method": method.name, **method.settings, "target": options.target_bits}
    key = learning_key(source, quantization, rows, dtype, settings)
    with resumable_directory(output, key) as directory:
        unfinished = UnfinishedLearning(directory)
        with unfinished.told_of():
            with unfinished.removed_by_errors():
                if options.target_bits is None:
                    learned, found = learn_weights(source, quantization, rows, method, dtype, progress, unfinished)
                else:
                    from lucid_deploy.export.rounding.automatic import learn_mixed

                    target, more = options.target_bits, (progress, unfinished)
                    learned, found = learn_mixed(source, quantization, rows, method, dtype, target, *more)
            yield found, learned

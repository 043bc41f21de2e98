"""From a checkpoint to an artifact: trace, attach functions, share weights, write atomically."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cache.storage import resolve_cache_dtype
from lucid_deploy.errors import LucidError
from lucid_deploy.export.artifact_files import ArtifactContents, Progress, has_float32_head, write_artifact
from lucid_deploy.export.options import ExportOptions, check_assumed, check_request, check_target
from lucid_deploy.export.tokenizer import check_links, check_tokenizer
from lucid_deploy.files import atomic_folders
from lucid_deploy.plugins.table import UNIT

if TYPE_CHECKING:
    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.export.diagonal import DiagonalEffect
    from lucid_deploy.model.checkpoint import Checkpoint

__all__ = ["ExportOptions", "Progress", "export"]


def export(
    checkpoint: str | Path, output: str | Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Artifact:
    """Export a checkpoint. The output directory appears complete or not at all.

    Args:
        checkpoint: A directory, the word ``demo``, or a model of the Hugging Face Hub, ``org/name``.
        output: The directory to make.
        options: See :class:`ExportOptions`.
        progress: Called with (what is being done, steps or bytes done, in all).

    Returns:
        The artifact, opened.

    Raises:
        LucidError: A checkpoint that can't be read or overflows float16, an output that exists, unknown options, a
            full disk.
    """
    from lucid_deploy.model.checkpoint import Checkpoint, resolve

    options = options or ExportOptions()
    output = Path(output)
    check_request(output, options)
    checkpoint, hub = _fetched(checkpoint, options, progress)
    check_links(resolve(checkpoint))
    states = options.dtype if options.state_dtype == "model" else None
    source = Checkpoint(checkpoint, options.assume_unused, options.diagonal, states)
    check_assumed(source, options.assume_unused)
    check_target(source.directory, output)
    check_tokenizer(source.directory)
    # Imported before anything is made: Ctrl-C within the import of onnx's C++ module crashes the process.
    import lucid_deploy.export.graph_file
    import lucid_deploy.export.trace  # noqa: F401
    from lucid_deploy.export.quantize.folding import with_scales
    from lucid_deploy.export.quantize.numbers import learned_numbers, plan_numbers, rows_to_learn_from, settle_options

    options = dataclasses.replace(options, quantize=settle_options(source, options.quantize, options.dtype))
    quantization = rows = None
    if options.quantize is not None:  # before anything that takes time: a glob may match nothing
        quantization = plan_numbers(source, options.quantize, options.dtype)
        rows = rows_to_learn_from(source, options.quantize, quantization, options.calibration)
    ranges, effect = _scan_ranges(source, options, quantization, progress)
    said = (effect.sentence,) if effect is not None and effect.sentence and not _is_demo(checkpoint) else ()
    try:
        with atomic_folders(output, overwrite=options.overwrite) as (building,):
            found, learned = learned_numbers(source, options.quantize, quantization, rows, options.dtype, progress)
            if learned is not None and learned.folded and ranges is not None and options.range_scan:
                # scales of inputs make some values larger
                ranges, _ = _scan_ranges(with_scales(source, learned.folded), options, found, progress)
            contents = ArtifactContents(source, str(checkpoint), options, ranges, found, hub, said, learned)
            write_artifact(building, contents, progress or (lambda *_: None))
            check_request(output, options)  # again: tracing and writing took a while
    except OSError as error:
        raise LucidError(f"Writing {output} failed: {error.strerror or error}. Nothing was left behind.") from error
    return open_artifact(output)


def _fetched(
    checkpoint: str | Path, options: ExportOptions, progress: Progress | None
) -> tuple[str | Path, dict[str, str] | None]:
    """Return a checkpoint of this machine, and for one that was downloaded where it comes from."""
    from lucid_deploy.model.hub import HubOptions, fetch, is_on_hub

    hub = options.hub or HubOptions()
    if not is_on_hub(checkpoint, hub):
        return checkpoint, None
    return fetch(str(checkpoint), hub, options.assume_unused, progress)


def _is_demo(checkpoint: str | Path) -> bool:
    """Whether it is the bundled model, which was trained with 1 on the diagonal."""
    from lucid_deploy.model.checkpoint import DEMO, resolve

    return resolve(checkpoint).resolve() == resolve(DEMO)


def _scan_ranges(
    source: Checkpoint, options: ExportOptions, quantization: Quantization | None, progress: Progress | None
) -> tuple[dict[str, Any] | None, DiagonalEffect | None]:
    """Refuse a model whose values overflow float16; return what the manifest says, None where nothing is float16.

    With it comes what training's diagonal would change; None where it is not measured, or is what is exported.
    """
    from lucid_deploy.export.range_scan import measure_diagonal

    learns = options.quantize is not None and options.quantize.learns
    asked = options.range_scan and options.diagonal == UNIT
    stored = resolve_cache_dtype(options.cache_dtype, options.dtype)
    if "float16" not in (options.dtype, stored):
        _check_calibration_is_read(options, learns)
        return None, measure_diagonal(source, progress) if asked else None
    if not options.range_scan:
        _check_calibration_is_read(options, learns)
        return {"skipped": True}, None
    from lucid_deploy.export.range_scan import CACHED, HEAD, ORDER, scan

    whole = options.dtype == "float16"
    checked: tuple[str, ...] = CACHED
    if whole:
        checked = (*ORDER, *HEAD[: 1 if has_float32_head(source, quantization) else 2])
    found = scan(source, options.calibration, checked, progress)
    found.check(
        source.directory,
        "Export with --dtype bfloat16 or float32." if whole else "Export with --cache-dtype auto or int8.",
    )
    return found.to_dict(), found.diagonal if asked else None


def _check_calibration_is_read(options: ExportOptions, learns: bool) -> None:
    if options.calibration is not None and not learns:
        raise LucidError(
            f"Nothing reads --calibration {options.calibration}: methods of --quantize that learn do (awq, gptq, "
            "auto), and the range scan of --dtype float16. Leave it out, or add one of them."
        )

"""Export a checkpoint to an artifact: check, plan what is quantized, learn where that is planned, write atomically."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.export.artifact_files import ArtifactContents, write_artifact
from lucid_deploy.export.companions import check_links
from lucid_deploy.export.options import ExportOptions, check_output, check_request, check_source
from lucid_deploy.export.quantize.method import Progress
from lucid_deploy.files import atomic_folders

if TYPE_CHECKING:
    from lucid_deploy.model.checkpoint import Checkpoint

__all__ = ["ExportOptions", "Progress", "export"]


def export(
    checkpoint: str | Path, output: str | Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Artifact:
    """Export a checkpoint and open the artifact. The output directory appears complete or not at all.

    Args:
        checkpoint: A directory, the word ``demo``, or a model of the Hugging Face Hub, ``org/name``.
        output: The directory to make.
        options: What to export; None: the defaults.
        progress: Called with (description, steps or bytes done, their total).

    Raises:
        LucidError: The checkpoint is unreadable or unsupported, the output exists, options are wrong, the disk is full.
    """
    options, output = options or ExportOptions(), Path(output)
    check_request(output, options)  # before PyTorch is imported, which takes seconds
    from lucid_deploy.export.adapters import plan_adapters
    from lucid_deploy.model.checkpoint import Checkpoint, resolve

    checkpoint, hub = _download(checkpoint, options, progress)
    check_links(resolve(checkpoint))
    state_dtype = options.dtype if options.state_dtype == "model" else None
    source = Checkpoint(
        checkpoint,
        options.assume_unused,
        options.diagonal,
        state_dtype,
        options.merge_adapter,
        options.trust_remote_code,
    )
    check_source(source, output, options)
    adapters = plan_adapters(source, options)
    tried = _try_class(source, progress)
    # Imported before the artifact is begun: Ctrl-C within the import of onnx's C++ module crashes the process.
    import lucid_deploy.export.graph_file
    import lucid_deploy.export.trace  # noqa: F401
    from lucid_deploy.export.quantize.plan import learn, plan
    from lucid_deploy.export.quantize.stored import resolve_stored

    options = dataclasses.replace(options, quantize=resolve_stored(source, options.quantize))
    planned = plan(source, options)
    notes = (*tried, *(() if planned is None else planned.notes), *(() if adapters is None else adapters.notes))
    try:
        with atomic_folders(output, overwrite=options.overwrite) as (building,):
            source, learned, quantization = learn(source, planned, options.dtype, progress)
            contents = ArtifactContents(source, str(checkpoint), options, quantization, hub, notes, learned, adapters)
            write_artifact(building, contents, progress or (lambda *_: None))
            check_output(output, options.overwrite)  # again: the output may have appeared meanwhile
    except OSError as error:
        raise LucidError(f"Writing {output} failed: {error.strerror or error}. Nothing was left behind.") from error
    return open_artifact(output)


def _download(
    checkpoint: str | Path, options: ExportOptions, progress: Progress | None
) -> tuple[str | Path, dict[str, str | None] | None]:
    """Return a local checkpoint and None, or download one from the Hub and return its directory and its origin."""
    from lucid_deploy.model.hub import fetch, is_on_hub

    if not is_on_hub(checkpoint, options.revision):
        return checkpoint, None
    if options.trust_remote_code:
        raise LucidError(
            f"Code of {checkpoint} is not downloaded. Look at it first: hf download {checkpoint} --local-dir DIR, and "
            "export DIR."
        )
    return fetch(str(checkpoint), options.revision, options.assume_unused, progress)


def _try_class(source: Checkpoint, progress: Progress | None) -> tuple[str, ...]:
    """Prove that transformers' class computes the same with our attention; return a note, or () for our own models."""
    if not source.config.class_config:
        return ()
    from lucid_deploy.model.transformers_class.trial import prove

    if progress is not None:
        progress("Trying transformers' class", 0, 1)
    return (prove(source.config, str(source.directory)),)

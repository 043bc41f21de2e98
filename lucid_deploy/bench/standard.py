"""The fair baseline: the same shape and weights with standard attention, exported by the same toolkit."""

from __future__ import annotations

import json
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import resolve


def export_standard(artifact: Artifact, scratch: Path) -> Path:
    """Export an artifact's checkpoint once more, as if its attention were standard.

    Args:
        artifact: The LUCID artifact.
        scratch: A directory for the files.

    Raises:
        LucidError: The checkpoint it was exported from is no longer there.
    """
    source = resolve(artifact.manifest.source).resolve()
    if not (source / "config.json").is_file():
        raise LucidError(
            f"The standard-attention baseline takes its weights from {source}, which is no longer there. "
            "Export the artifact again, or leave out --baseline standard."
        )
    checkpoint = scratch / "standard-checkpoint"
    checkpoint.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (checkpoint / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    standard = {**config, "attention_type": "llama", "use_qknorm": False}
    (checkpoint / "config.json").write_text(json.dumps(standard), encoding="utf-8")
    manifest = artifact.manifest
    target = scratch / "standard"
    requested = "auto" if manifest.cache_dtype == manifest.dtype else manifest.cache_dtype
    export(
        checkpoint,
        target,
        ExportOptions(
            dtype=manifest.dtype,
            logits=manifest.logits,
            cache=manifest.cache,
            cache_dtype=requested,
            assume_unused=tuple(manifest.assumed_unused),
            range_scan=False,  # random prompts of the baseline overflow where the model's own weights do, or nowhere
        ),
    )
    return target

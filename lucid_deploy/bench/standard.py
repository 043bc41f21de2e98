"""The fair baseline: the same shape and weights with standard attention, exported by the same toolkit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import (
    FLOAT_SCHEMES,
    HQQ,
    NEAREST,
    STORED,
    Quantization,
    short_name,
    weight_and_rows,
)
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import EMBEDDING
from lucid_deploy.model.checkpoint import Checkpoint, resolve
from lucid_deploy.model.config import LUCID, STANDARD, WINDOW


def export_standard(artifact: Artifact, scratch: Path) -> Path:
    """Export an artifact's checkpoint again with standard attention in place of LUCID's; return its directory.

    Types, opset and form of the graphs are the artifact's, and so are its layers that are not LUCID. A quantized
    artifact's weights are quantized again to the same bits in the same blocks: copied if the checkpoint was quantized
    already, else rounded to nearest (by HQQ if blocks have offsets). What a method learned does not change the speed.

    Args:
        artifact: The LUCID artifact.
        scratch: The folder in which the checkpoint and the export are made.
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
    (checkpoint / "config.json").write_text(json.dumps(_as_standard(config)), encoding="utf-8")
    manifest = artifact.manifest
    _check_kinds(checkpoint, artifact)
    target = scratch / "standard"
    requested = "auto" if manifest.cache_dtype == manifest.dtype else manifest.cache_dtype
    export(
        checkpoint,
        target,
        ExportOptions(
            dtype=manifest.dtype,
            logits=manifest.logits,
            cache=None if manifest.forms else manifest.cache,
            cache_dtype=requested,
            assume_unused=tuple(manifest.assumed_unused),
            quantize=_as_recorded(manifest.quantization, artifact.config.tie_word_embeddings),
            inline=manifest.inline,
            opset=max(each.opset for each in manifest.each_form()),
            state_dtype="model" if manifest.config.has_narrow_states else "float32",
            merge_adapter=None if manifest.adapter is None else Path(manifest.adapter),
        ),
    )
    return target


def _as_standard(config: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration with standard attention in the place of LUCID's."""
    standard = {**config, "attention_type": "llama", "use_qknorm": False}
    standard.pop("lucid_layers", None)
    if config.get("layer_kinds"):
        standard["layer_kinds"] = [STANDARD if kind == LUCID else kind for kind in config["layer_kinds"]]
    return standard


def _check_kinds(checkpoint: Path, artifact: Artifact) -> None:
    """Check that the baseline has standard attention where the artifact has LUCID, and otherwise the same layers."""
    wanted = tuple(STANDARD if kind == LUCID else kind for kind in artifact.config.kinds)
    try:
        found = Checkpoint(checkpoint, tuple(artifact.manifest.assumed_unused)).config.kinds
    except LucidError:
        if WINDOW not in wanted:
            raise
        found = ()
    if found != wanted:
        family = artifact.config.family
        raise LucidError(
            f"There is no baseline with standard attention for {artifact.directory}: the model has layers "
            f"with a window, and {family} cannot have others beside them. Leave out --baseline standard."
        )


def _as_recorded(record: Quantization | None, tied: bool) -> QuantizeOptions | None:
    """Return options that quantize the weights that a record lists, in its format; None without a record."""
    if record is None:
        return None
    if record.method.name == STORED:
        return QuantizeOptions(STORED, record.format, activations=record.activations)
    optional = EMBEDDING if not tied or record.format == "qdq" else None  # is not quantized unless it is asked for
    kept = tuple(short_name(name) for name in record.kept if name != optional)
    if record.scheme in FLOAT_SCHEMES:  # the scheme fixes the blocks that share a scale
        return QuantizeOptions(record.scheme, record.format, keep_float=kept, activations=record.activations)
    return QuantizeOptions(
        record.scheme,
        record.format,
        # In qdq, blocks are smaller if a row's length is no multiple of theirs; weights of other bits have their own.
        block_size=max((each.block_size for each in record.tensors.values() if each.bits is None), default=None),
        keep_float=kept,
        embeddings=EMBEDDING in record.tensors and not tied,
        activations=record.activations,
        method=HQQ if any(tensor.offsets for tensor in record.tensors.values()) else NEAREST,
        frequent_rows=max((weight_and_rows(name)[1].start or 0 for name in record.tensors), default=0),
        bits={name: each.bits for name, each in record.tensors.items() if each.bits and "[" not in name},
    )

"""Export a checkpoint to an artifact: check the request, choose quantized values, trace, write atomically."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.quantization import STORED, Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.export.artifact_files import ArtifactContents, write_artifact
from lucid_deploy.export.companions import check_links, check_tokenizer
from lucid_deploy.export.options import ExportOptions, check_assumed, check_output, check_request, check_target
from lucid_deploy.export.quantize.method import Progress
from lucid_deploy.files import atomic_folders

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.method import LearnedWeights
    from lucid_deploy.export.quantize.options import QuantizeOptions
    from lucid_deploy.model.checkpoint import Checkpoint

_ROUTERS = (".mlp.gate.weight", "_expert_gate.weight")  # ends of weights' names: routers, gates of shared experts

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
    check_assumed(source, options.assume_unused)
    check_target(source.directory, output)
    check_tokenizer(source.directory)
    adapters = plan_adapters(source, options)
    tried = _try_class(source, progress)
    # Imported before the artifact is begun: Ctrl-C within the import of onnx's C++ module crashes the process.
    import lucid_deploy.export.graph_file
    import lucid_deploy.export.trace  # noqa: F401
    from lucid_deploy.export.quantize.options import FEW_TOKENS
    from lucid_deploy.export.quantize.stored import resolve_stored

    quantize = resolve_stored(source, options.quantize)
    options = dataclasses.replace(options, quantize=quantize)
    if options.calibration is not None and not (quantize is not None and quantize.chosen_method.learns):
        raise LucidError(
            f"Nothing reads --calibration {options.calibration}: --quantize int4 and --method distill learn from it. "
            "Leave it out, or add one of them."
        )
    quantization = rows = learned = None
    if quantize is not None:  # before any learning: a glob of --keep-float may match nothing
        quantization = _plan(source, quantize, options.dtype)
        rows = rows_to_learn_from(source, quantize, options.calibration)
    warnings: tuple[str, ...] = ()
    if quantization is not None and any(map(source.config.experts_of, range(source.config.num_hidden_layers))):
        warnings = (*warnings, _about_experts(quantization, options.dtype))
    if rows is not None and rows.tokens < FEW_TOKENS:
        warnings = (
            *warnings,
            f"The calibration text has {rows.tokens} tokens: what is learned from fewer than {FEW_TOKENS} may not hold "
            "for other text.",
        )
    warnings = (*tried, *warnings, *(() if adapters is None else adapters.notes))
    try:
        with atomic_folders(output, overwrite=options.overwrite) as (building,):
            if quantize is not None and quantization is not None:
                learned, quantization = _choose_numbers(source, quantize, quantization, rows, options.dtype, progress)
            contents = ArtifactContents(
                source, str(checkpoint), options, quantization, hub, warnings, learned, adapters
            )
            write_artifact(building, contents, progress or (lambda *_: None))
            check_output(output, options.overwrite)  # again: it may have appeared since
    except OSError as error:
        raise LucidError(f"Writing {output} failed: {error.strerror or error}. Nothing was left behind.") from error
    return open_artifact(output)


def _download(
    checkpoint: str | Path, options: ExportOptions, progress: Progress | None
) -> tuple[str | Path, dict[str, str] | None]:
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


def _plan(source: Checkpoint, options: QuantizeOptions, dtype: str) -> Quantization:
    """Choose which weights are quantized."""
    from lucid_deploy.export.quantize.plan import plan_quantization
    from lucid_deploy.export.quantize.stored import plan_stored

    if options.scheme == STORED:
        return plan_stored(source, options, dtype)
    shapes, experts = _quantizable(source)
    return plan_quantization(shapes, source.tied, options, experts)


def _about_experts(quantization: Quantization, dtype: str) -> str:
    if not any(tensor.experts for tensor in quantization.tensors.values()):
        return f"Experts and routers stay in {dtype}: only other linear layers are quantized."
    return f"Routers stay in {dtype}: rounded ones would choose other experts."


def _quantizable(source: Checkpoint) -> tuple[dict[str, tuple[int, ...]], dict[str, QuantizedTensor]]:
    """Return the shapes of the weights that may be quantized, and the experts' records, whose block size is still 0.

    Left out are routers (if rounded, they would choose other experts) and, for a class of transformers, whatever is no
    linear layer, expert or embedding.
    """
    import torch

    from lucid_deploy.model.build import make_model

    shapes = source.stored_shapes()
    with torch.device("meta"):
        modules = dict(make_model(source.config).named_modules())
    experts = {}
    for path, module in modules.items():
        turned = getattr(module, "is_transposed", None)  # only modules of experts have it
        for name, value in module.named_parameters(recurse=False) if turned is not None else ():
            if value.dim() == 3:
                count, *sizes = value.shape
                rows, width = reversed(sizes) if turned else sizes
                experts[f"{path}.{name}"] = QuantizedTensor((count * rows, width), 0, experts=count, transposed=turned)
    if source.config.class_config:
        linear = {f"{path}.weight" for path, module in modules.items() if isinstance(module, torch.nn.Linear)}
        shapes = {
            name: shape for name, shape in shapes.items() if name in (*linear, *experts, "model.embed_tokens.weight")
        }
    return {name: shape for name, shape in shapes.items() if not name.endswith(_ROUTERS)}, experts


def _choose_numbers(
    source: Checkpoint,
    options: QuantizeOptions,
    quantization: Quantization,
    rows: CalibrationRows | None,
    dtype: str,
    progress: Progress | None,
) -> tuple[LearnedWeights, Quantization]:
    """Equalize weights and learn quantized values, as the options say; what is not learned is rounded when written."""
    from lucid_deploy.export.quantize.equalize import ALPHA, equalizing_scales
    from lucid_deploy.export.quantize.folds import with_scales
    from lucid_deploy.export.quantize.method import LearnedWeights

    learned, folded = LearnedWeights(), {}
    if options.equalizes:
        folded = equalizing_scales(source, quantization, dtype, progress, rows)
        source = with_scales(source, folded)
    if rows is not None:
        learned, quantization = options.chosen_method.learn(source, quantization, rows, dtype, progress)
    if options.equalizes:
        learned.folded |= folded
        method = quantization.method
        settings = {**method.settings, "equalization": ALPHA}
        quantization = dataclasses.replace(quantization, method=dataclasses.replace(method, settings=settings))
    return learned, quantization


def rows_to_learn_from(
    source: Checkpoint, options: QuantizeOptions, calibration: Path | None
) -> CalibrationRows | None:
    """Read the text that weights are learned from; None for a method that does not learn."""
    if not options.chosen_method.learns:
        return None
    if calibration is None:
        raise LucidError(
            f"--method {options.method} learns from text like what the model will read. Give such a file with "
            "--calibration, or leave out --method."
        )
    from lucid_deploy.export.calibration import calibration_rows

    return calibration_rows(source, calibration, options.calibration_tokens)

"""Choose what an export quantizes and how (``plan``, before files are written); equalize and learn (``learn``)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.quantization import STORED, Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import CalibrationRows, calibration_rows
from lucid_deploy.export.quantize.equalize import ALPHA, equalizing_scales
from lucid_deploy.export.quantize.folds import with_scales
from lucid_deploy.export.quantize.method import LearnedWeights, Progress
from lucid_deploy.export.quantize.options import FEW_TOKENS, QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.export.quantize.stored import plan_stored

if TYPE_CHECKING:
    from lucid_deploy.export.options import ExportOptions
    from lucid_deploy.model.checkpoint import Checkpoint

_ROUTERS = (".mlp.gate.weight", "_expert_gate.weight")  # ends of weights' names: routers, gates of shared experts


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is quantized, and the text to learn from."""

    options: QuantizeOptions
    quantization: Quantization
    rows: CalibrationRows | None  # None: nothing is learned
    notes: tuple[str, ...]  # for the manifest


def plan(source: Checkpoint, options: ExportOptions) -> Plan | None:
    """Choose which weights are quantized, and read the text to learn from; None: nothing is quantized.

    Raises:
        LucidError: Options do not fit the checkpoint or each other, or the text cannot be read.
    """
    quantize, calibration = options.quantize, options.calibration
    learns = quantize is not None and quantize.chosen_method.learns
    if calibration is not None and not learns:
        raise LucidError(
            f"Nothing reads --calibration {calibration}: --quantize int4 and --method distill learn from it. "
            "Leave it out, or add one of them."
        )
    if quantize is None:
        return None
    if quantize.scheme == STORED:
        quantization = plan_stored(source, quantize, options.dtype)
    else:  # before the text is read: a glob of --keep-float may match nothing
        shapes, experts = _quantizable(source)
        quantization = plan_quantization(shapes, source.tied, quantize, experts)
    notes, rows = [], None
    if any(map(source.config.experts_of, range(source.config.num_hidden_layers))):
        rounded = any(tensor.experts for tensor in quantization.tensors.values())
        notes.append(
            f"Routers stay in {options.dtype}: rounded ones would choose other experts."
            if rounded
            else f"Experts and routers stay in {options.dtype}: only other linear layers are quantized."
        )
    if learns:
        if calibration is None:
            raise LucidError(
                f"--method {quantize.method} learns from text like what the model will read. Give such a file with "
                "--calibration, or leave out --method."
            )
        rows = calibration_rows(source, calibration, quantize.calibration_tokens)
        if rows.tokens < FEW_TOKENS:
            notes.append(
                f"Weights are learned from only {rows.tokens} tokens of the calibration text: what is learned from "
                f"fewer than {FEW_TOKENS} may not hold for other text."
            )
    return Plan(quantize, quantization, rows, tuple(notes))


def _quantizable(source: Checkpoint) -> tuple[dict[str, tuple[int, ...]], dict[str, QuantizedTensor]]:
    """Return the shapes of the weights that may be quantized, and the experts' records, whose block size is still 0.

    Left out are routers (if rounded, they would choose other experts), gates of shared experts and, for a class of
    transformers, whatever is no linear layer, expert or embedding.
    """
    import torch

    from lucid_deploy.model.build import make_model

    shapes = source.stored_shapes()
    with torch.device("meta"):
        modules = dict(make_model(source.config).named_modules())
    experts = {}
    for path, module in modules.items():
        turned: Any = getattr(module, "is_transposed", None)  # only modules of experts have it
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


def learn(
    source: Checkpoint, planned: Plan, dtype: str, progress: Progress | None
) -> tuple[LearnedWeights, Quantization]:
    """Equalize weights and learn quantized values, as planned; others are rounded when they are written."""
    options, quantization, rows = planned.options, planned.quantization, planned.rows
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

"""Choose what an export quantizes and how (``plan``, before files are written); learn the weights (``learn``)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.quantization import (
    BLOCK_SIZES,
    EMBEDDING,
    HEAD,
    NEAREST,
    NVFP4_BLOCK,
    SCHEMES,
    STORED,
    Method,
    Quantization,
    QuantizedTensor,
    rows_name,
    short_name,
)
from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import CalibrationRows, calibration_rows
from lucid_deploy.export.quantize.equalize import ALPHA, equalizing_scales
from lucid_deploy.export.quantize.folds import with_scales
from lucid_deploy.export.quantize.method import LearnedWeights, Progress
from lucid_deploy.export.quantize.options import (
    BEST_HEAD_BITS,
    DEFAULT_BLOCK,
    FEW_TOKENS,
    FREQUENT_ROWS,
    QuantizeOptions,
)
from lucid_deploy.export.quantize.stored import plan_stored
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from lucid_deploy.export.options import ExportOptions
    from lucid_deploy.model.checkpoint import Checkpoint

_WIDE = 128  # the largest block of an 8-bit weight in the scheme int4
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_ROUTERS = (".mlp.gate.weight", "_expert_gate.weight")  # name suffixes of the weights of routers, shared experts' gates


@dataclass(frozen=True)
class Plan:
    """What an export quantizes and how, and the text to learn from."""

    options: QuantizeOptions
    quantization: Quantization
    rows: CalibrationRows | None  # None: nothing is learned
    notes: tuple[str, ...]  # for the manifest


def plan(source: Checkpoint, options: ExportOptions) -> Plan | None:
    """Choose which weights are quantized, and read the text to learn from; return None if nothing is quantized.

    Raises:
        LucidError: Options do not fit the checkpoint or each other, or the text cannot be read.
    """
    quantize, calibration = options.quantize, options.calibration
    learns = quantize is not None and quantize.chosen_method.learns
    if calibration is not None and not learns:
        raise LucidError(
            f"--calibration {calibration} is not used: --quantize int4 and --method distill learn from it. "
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
    """Return the shapes of the weights that may be quantized, and the experts' records, without a block size.

    This leaves out routers (rounded ones would choose other experts), gates of shared experts and, for transformers
    classes, every module that is not a linear layer, experts or the embedding.
    """
    import torch

    from lucid_deploy.model.build import make_model

    shapes = source.stored_shapes()
    with torch.device("meta"):
        modules = dict(make_model(source.config).named_modules())
    experts = {}
    for path, module in modules.items():
        turned: Any = getattr(module, "is_transposed", None)  # only experts' modules have it
        for name, value in module.named_parameters(recurse=False) if turned is not None else ():
            if value.dim() == 3:
                count, *sizes = value.shape
                rows, width = reversed(sizes) if turned else sizes
                experts[f"{path}.{name}"] = QuantizedTensor((count * rows, width), 0, experts=count, transposed=turned)
    if source.config.class_config:
        linear = {f"{path}.weight" for path, module in modules.items() if isinstance(module, torch.nn.Linear)}
        shapes = {name: shape for name, shape in shapes.items() if name in (*linear, *experts, EMBEDDING)}
    return {name: shape for name, shape in shapes.items() if not name.endswith(_ROUTERS)}, experts


def plan_quantization(
    shapes: dict[str, tuple[int, ...]],
    tied: bool,
    options: QuantizeOptions,
    experts: dict[str, QuantizedTensor] | None = None,
) -> Quantization:
    """Choose what is quantized, and how; raise ``LucidError`` for options that do not fit the weights.

    Args:
        shapes: Shapes of the weights that may be quantized, by name; without a tied head.
        experts: Records of the experts' matrices; their block sizes are chosen here.
    """
    form, experts = options.chosen_format, experts or {}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2 or name in experts]
    candidates = [name for name in matrices if name != EMBEDDING]
    candidates = [name for name in candidates if name not in experts or _expert_block(experts[name], options)]
    if form == "matmulnbits" and (tied or options.embeddings):
        candidates.insert(0, EMBEDDING)
    chosen = [name for name in candidates if name not in _kept(candidates, tied, options.keep_float)]
    if not chosen:
        raise LucidError("--keep-float keeps every weight, so there is nothing to quantize. Leave out --quantize.")
    method = options.chosen_method
    head, head_bits, frequent = EMBEDDING if tied else HEAD, options.head_bits, options.frequent_rows
    if frequent and (EMBEDDING not in chosen or frequent >= shapes[EMBEDDING][0]):
        raise LucidError("frequent_rows needs an embedding that is quantized and has more rows than that.")
    if options.takes_best and head in chosen and not head_bits and not frequent:
        frequent = FREQUENT_ROWS if tied and shapes[head][0] >= 2 * FREQUENT_ROWS else 0
        head_bits = None if frequent else BEST_HEAD_BITS
    bits = {head: head_bits} if head_bits else {}
    if options.takes_best:
        bits = dict.fromkeys(_sensitive(shapes, chosen), BEST_HEAD_BITS) | bits
    if strangers := sorted(bits.keys() - set(chosen)):
        raise LucidError(f"Bits are given for weights that are not quantized: {', '.join(strangers)}.")
    tensors = {
        name: _planned_experts(experts[name], options, bits.get(name))
        if name in experts
        else _planned(name, shapes[name], options, bits.get(name))
        for name in chosen
    }
    if frequent:
        tensors = _in_rows(tensors.pop(EMBEDDING), frequent) | tensors
    return Quantization(
        scheme=options.scheme,
        bits=SCHEMES[options.scheme],
        format=form,
        # With rounded inputs, routers would choose other experts, so that the export could not be verified.
        activations="float" if experts and options.activations == "auto" else options.chosen_activations,
        tensors=tensors,
        kept=tuple(name for name in matrices if name not in chosen),
        tool=f"lucid-deploy {__version__}" if options.is_float else method.tool(),
        method=Method(NEAREST if method.learns else method.name),  # learn() sets the method's own
    )


def _sensitive(shapes: dict[str, tuple[int, ...]], chosen: list[str]) -> Iterator[str]:
    """Yield the weights that gain most from 8 bits instead of 4 (measured, see docs/quantization.md).

    These are ``k_proj`` and ``v_proj`` with grouped-query attention, which makes them small, and ``down_proj`` in the
    last eighth of the layers.
    """
    layers = 1 + max((int(found[1]) for name in shapes if (found := _LAYER.match(name))), default=0)
    for name in chosen:
        start, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("k_proj", "v_proj"):
            queries = shapes.get(f"{start}.q_proj.weight")
            if queries is not None and 2 * shapes[name][0] <= queries[0]:
                yield name
        elif part == "down_proj" and (found := _LAYER.match(name)) and 8 * int(found[1]) >= 7 * layers:
            yield name


def _planned(name: str, shape: tuple[int, ...], options: QuantizeOptions, bits: int | None) -> QuantizedTensor:
    rows, width = shape
    if options.scheme == "fp8":
        return QuantizedTensor((rows, width), width, granularity="tensor")
    if options.scheme == "nvfp4":
        if width % NVFP4_BLOCK:
            raise LucidError(
                f"{short_name(name)} has rows of {width} elements; nvfp4 needs a multiple of {NVFP4_BLOCK}. "
                f"Keep it with --keep-float {short_name(name)!r}, or use --quantize fp8."
            )
        return QuantizedTensor((rows, width), NVFP4_BLOCK)
    method, block = options.chosen_method, options.block_size or DEFAULT_BLOCK[options.scheme]
    # The operator that reads an embedding's rows has no offsets, and an 8-bit weight of int4 does not need them.
    offsets = options.chosen_format in method.offsets and name != EMBEDDING and bits != 8
    if (options.scheme, bits) == ("int4", 8):  # with 8 bits, wide blocks lose nothing
        block = next((size for size in reversed(BLOCK_SIZES) if size <= _WIDE and width % size == 0), block)
    needed = "TensorRT" if options.chosen_format == "qdq" else f"--method {method.name}" if offsets else None
    size = block if needed is None else _dividing(name, width, block, needed)
    # In blocks of 32, scales and offsets add 2 bits per element in float32, 1 in float16; q fits the rounded scales.
    kind = "float16" if offsets and options.chosen_format == "matmulnbits" else None
    return QuantizedTensor((rows, width), size, bits=bits, offsets=offsets, scale_dtype=kind)


def _in_rows(embedding: QuantizedTensor, frequent: int) -> dict[str, QuantizedTensor]:
    """Split an embedding: its first rows get 8 bits, the others stay as planned, but with float16 scales."""
    rows, width = embedding.shape
    return {
        rows_name(EMBEDDING, 0, frequent): replace(embedding, shape=(frequent, width), bits=BEST_HEAD_BITS),
        rows_name(EMBEDDING, frequent, rows): replace(embedding, shape=(rows - frequent, width), scale_dtype="float16"),
    }


def _planned_experts(tensor: QuantizedTensor, options: QuantizeOptions, bits: int | None) -> QuantizedTensor:
    offsets = "matmulnbits" in options.chosen_method.offsets and bits != 8
    block = _expert_block(tensor, options, _WIDE if (options.scheme, bits) == ("int4", 8) else 0)
    kind = "float16" if offsets else None
    return replace(tensor, block_size=block, bits=bits, offsets=offsets, scale_dtype=kind)


def _expert_block(tensor: QuantizedTensor, options: QuantizeOptions, most: int = 0) -> int:
    """Return the largest allowed block size that divides the rows of experts' matrices; 0 if experts stay float."""
    if options.chosen_format == "qdq":
        return 0
    most = most or options.block_size or DEFAULT_BLOCK[options.scheme]
    return next((size for size in reversed(BLOCK_SIZES[1:]) if size <= most and tensor.shape[1] % size == 0), 0)


def _kept(candidates: list[str], tied: bool, globs: tuple[str, ...]) -> set[str]:
    kept = set()
    for glob in globs:
        found = {
            name
            for name in candidates
            if any(fnmatch.fnmatchcase(known, glob) for known in _names(name, tied and name == EMBEDDING))
        }
        if not found:
            known = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", short_name(name)) for name in candidates)
            raise LucidError(f"--keep-float {glob!r} matches no weight that would be quantized: {', '.join(known)}.")
        kept |= found
    return kept


def _names(name: str, is_head: bool) -> Iterator[str]:
    for own in (name, HEAD) if is_head else (name,):
        yield from (own, short_name(own), own.removesuffix(".weight"))


def _dividing(name: str, width: int, block: int, needed: str) -> int:
    """Return the largest block size up to ``block`` that divides a row; the error names ``needed`` as the reason."""
    for size in reversed(BLOCK_SIZES):
        if size <= block and width % size == 0:
            return size
    raise LucidError(
        f"{short_name(name)} has rows of {width} elements, and {needed} needs a multiple of {BLOCK_SIZES[0]}. Keep it "
        f"with --keep-float {short_name(name)!r}, or export with --quantize-format matmulnbits --method rtn."
    )


def learn(
    source: Checkpoint, planned: Plan | None, dtype: str, progress: Progress | None
) -> tuple[Checkpoint, LearnedWeights, Quantization | None]:
    """Equalize weights and learn quantized values as planned; other weights are rounded when they are written.

    Returns:
        A view of the checkpoint with all scales folded into its weights; the learned weights; the completed record.
    """
    learned, folded = LearnedWeights(), {}
    if planned is None:
        return source, learned, None
    options, quantization, rows = planned.options, planned.quantization, planned.rows
    if options.equalizes:
        folded = equalizing_scales(source, quantization, dtype, progress, rows)
    if rows is not None:
        equalized = with_scales(source, folded)
        learned, quantization = options.chosen_method.learn(equalized, quantization, rows, dtype, progress)
    if options.equalizes:
        learned.folded |= folded
        method = quantization.method
        settings = {**method.settings, "equalization": ALPHA}
        quantization = replace(quantization, method=replace(method, settings=settings))
    return with_scales(source, learned.folded), learned, quantization

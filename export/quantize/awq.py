"""AWQ: scale up the inputs that matter before rounding to nearest, so that their products lose less.

Column i of a weight is multiplied by s_i = mean|x_i|^α, and its input divided by it; α is the one of twenty values with
which the products lose least over the text (Lin, Tang, Tang, Yang, Dang, Han, "AWQ", arXiv 2306.00978, section 3.2; the
constants are those of the authors' code, llm-awq). Then each block gets the scale that loses least over the text: the
authors' search for clipping, with the same candidates as GPTQ here.

Where the division goes: :mod:`lucid_deploy.export.quantize.folds`.

Two things differ from the authors' code. Losses are those of the products that read an input, each relative to its own
size, where they take the outputs of attention and of the MLP as a whole. And the scales of q and k are searched too,
which they leave as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantized_bytes import INPUTS, OUTPUTS
from lucid_deploy.export.quantize.folds import find_folds, storable
from lucid_deploy.export.quantize.inputs import InputMoments, ProductErrors, final_norm, inputs_of, run_layer
from lucid_deploy.export.quantize.learn import learn_weights
from lucid_deploy.export.quantize.method import Choose, LayerInputs, LearningRule, QuantizationMethod, Streams, Target
from lucid_deploy.export.quantize.plan import HEAD
from lucid_deploy.export.quantize.scales import number_range, search_scales

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lucid_deploy.model.checkpoint import Checkpoint

Array = np.ndarray[Any, np.dtype[Any]]
GRID = 20  # values of α: 0, 0.05, … 0.95; with 0 nothing is scaled
_LEAST = 1e-4  # of a scale, before they are made to lie around 1
_DAMPING = 1e-4  # of the mean second moment: inputs that were always zero lose nothing, whatever they are multiplied by


@dataclass
class InputSizes:
    """An input's second moments mean(x xᵀ), ``(in, in)``, and mean |x|, ``(in,)``, over a text."""

    x_x: torch.Tensor
    magnitude: torch.Tensor


def input_sizes(batches: Iterable[Sequence[torch.Tensor]], inputs: int) -> list[InputSizes]:
    """Compute the sizes of several inputs, given batch by batch."""
    import torch

    zero = torch.zeros((), dtype=torch.float64)
    found, count = [(zero, zero) for _ in range(inputs)], 0
    for given in batches:
        rows = [x.reshape(-1, x.shape[-1]) for x in given]
        count += len(rows[0]) if rows else 0
        found = [(a + x.mT @ x, b + x.abs().sum(dim=0)) for (a, b), x in zip(found, rows, strict=True)]
    return [InputSizes((a / count).float(), (b / count).float()) for a, b in found]


def input_scale(sizes: InputSizes, weights: list[tuple[torch.Tensor, Target]]) -> torch.Tensor:
    """Return the scale s ``(in,)`` with which the products that read an input lose least."""
    import torch

    best, least = torch.ones_like(sizes.magnitude), torch.inf
    whole = [_lost(weight, sizes.x_x) for weight, _ in weights]
    for step in range(GRID):
        scale = sizes.magnitude.pow(step / GRID).clamp(min=_LEAST)
        scale = scale / (scale.max() * scale.min()).sqrt()
        lost = 0.0
        for (weight, target), size in zip(weights, whole, strict=True):
            changed = weight * scale
            error = rounded(changed, nearest_scales(changed, target), target)[1].div_(scale).sub_(weight)
            lost += _lost(error, sizes.x_x) / size if size > 0 else 0.0
        if lost < least:
            best, least = scale, lost
    return best


def nearest_scales(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """Return scales at which each block's largest element just fits, ``(out, blocks)``."""
    return search_scales(weight, target.tensor, target.bits, target.dtype, target.positive, widths=(1.0,))


def clipped_scales(weight: torch.Tensor, target: Target, x_x: torch.Tensor) -> torch.Tensor:
    """Return the scales ``(out, blocks)`` with which each block's share in the outputs loses least."""
    import torch

    size, missing = target.tensor.block_size, -len(x_x) % target.tensor.block_size
    damped = x_x + torch.eye(len(x_x)) * (_DAMPING * x_x.diagonal().mean() or 1.0)
    damped = torch.nn.functional.pad(damped, (0, missing, 0, missing))
    blocks = torch.stack([damped[i : i + size, i : i + size] for i in range(0, len(damped), size)])
    return search_scales(weight, target.tensor, target.bits, target.dtype, target.positive, moments=blocks)


def rounded(weight: torch.Tensor, scales: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the whole numbers nearest to a weight, int8 ``(out, in)``, and their values."""
    import torch

    spread = scales.repeat_interleave(target.tensor.block_size, dim=1)[:, : weight.shape[1]]
    numbers = (weight / spread).round_().clamp_(*number_range(target.bits, target.positive))
    return numbers.to(torch.int8), numbers * spread


def _lost(error: torch.Tensor, x_x: torch.Tensor) -> float:
    """Return mean‖E x‖², which is tr(E mean(x xᵀ) Eᵀ)."""
    import torch

    return float(torch.linalg.vecdot(error @ x_x, error).sum(dtype=torch.float64))


class AwqRule(LearningRule):
    """Scale inputs layer by layer, then search for each block's scale."""

    name = "awq"

    def __init__(self) -> None:
        self.settings = {"grid": GRID}

    def fold(self, part: LayerInputs, streams: Streams) -> dict[str, Array]:
        layer, prefix, targets = part.layer, part.prefix, part.targets

        def run(other: Any, x: torch.Tensor) -> torch.Tensor:
            return run_layer(other, part.config, part.index, x)[0]

        folds = find_folds(layer, run, streams[0][0], part.groups)
        used = [fold for fold in folds if fold is not None and fold.changes_only(part.targets, part.layer, part.prefix)]
        readers = [layer.get_submodule(fold.readers[0]) for fold in used]
        inputs = (inputs_of(readers, lambda x: run(layer, x), x)[0] for x, _ in streams)
        sizes = input_sizes(inputs, len(used))
        scales: list[torch.Tensor] = []
        for fold, size in zip(used, sizes, strict=True):
            names = [f"{prefix}{name}.weight" for name in fold.readers]
            weights = [layer.get_parameter(f"{name}.weight").data for name in fold.readers]
            scale = input_scale(size, [(w, targets[name]) for w, name in zip(weights, names, strict=True)])
            giver = layer.get_parameter(f"{fold.giver}.weight").data
            scales.append(storable(scale, giver, targets[names[0]].dtype) if giver.dim() == 1 else scale)
        found: dict[str, Array] = {}
        for fold, scale in zip(used, scales, strict=True):  # only now: all were found on the unchanged layer
            fold.apply(layer, scale)
            found |= fold.scales(prefix, layer, scale)
        return found

    def fold_head(self, checkpoint: Checkpoint, target: Target, streams: Streams) -> dict[str, Array]:
        norm = "model.norm.weight"
        (size,) = input_sizes(([final_norm(checkpoint, x)] for x, _ in streams), 1)
        scale = input_scale(size, [(checkpoint.tensor(HEAD).float(), target)])
        stored = storable(scale, checkpoint.tensor(norm).float(), target.dtype).numpy()
        return {HEAD + INPUTS: stored, norm + OUTPUTS: stored}

    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        import torch

        given = moments.x_x if scale is None else moments.x_x / torch.outer(scale, scale)
        x_x = given.to(torch.float32)

        def choose(weight: torch.Tensor, target: Target, errors: ProductErrors) -> tuple[torch.Tensor, torch.Tensor]:
            del errors
            scales = clipped_scales(weight, target, x_x)
            return rounded(weight, scales, target)[0], scales

        return choose


class Awq(QuantizationMethod):
    """``--method awq``."""

    name = "awq"
    learns = True
    options = frozenset({"tokens"})

    def learn(self, checkpoint, quantization, rows, options, dtype, progress):  # type: ignore[no-untyped-def]
        del options
        return learn_weights(checkpoint, quantization, rows, AwqRule(), dtype, progress)


METHOD = Awq()

"""Cross-layer equalization: make the columns of a weight alike before rounding, without any text.

Rounding with one scale for a block of inputs loses most where a few columns are much larger than their neighbours.
Column i of the weights that read an input is multiplied by s_i = size_i^-α, where size_i is the root mean square of the
column, and what gives the input is divided by it (Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization
Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1). What gives an input needs no
counterpart here: its rows have scales of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.export.quantize.folds import Fold, find_folds, storable
from lucid_deploy.export.quantize.inputs import load_layer, run_layer, shared_inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.model.checkpoint import Checkpoint

ALPHA = 0.75  # by measurement, see docs/quantization.md
_TOKENS = 5  # to find places with


def equalizing_scales(
    source: Checkpoint, quantization: Quantization, dtype: str, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return the scales of all layers' inputs, float32, named as :mod:`lucid_deploy.artifact.quantized_bytes` says.

    Args:
        quantization: Which weights will be rounded; others but norms stay as they are.
        dtype: Type of the norms in the artifact.
    """
    import torch

    found: dict[str, Any] = {}
    config, layers = source.config, source.config.num_hidden_layers
    draw = torch.Generator().manual_seed(0)
    for index in range(layers):
        if progress is not None:
            progress("Equalizing", index, layers)
        layer, prefix = load_layer(source, index), f"model.layers.{index}."

        def run(other: nn.Module, x: torch.Tensor, index: int = index) -> torch.Tensor:
            return run_layer(other, config, index, x)[0]

        with torch.inference_mode():
            x = torch.randn((1, _TOKENS, config.hidden_size), generator=draw)
            groups = shared_inputs(layer, lambda x, layer=layer, run=run: run(layer, x), x)  # type: ignore[misc]
            for fold in find_folds(layer, run, x, groups, config.num_key_value_heads):
                if fold is not None and fold.changes_only(quantization.tensors, layer, prefix):
                    scale = _scale(layer, fold, dtype)
                    fold.apply(layer, scale)
                    found |= fold.scales(prefix, layer, scale)
    return found


def _scale(layer: nn.Module, fold: Fold, dtype: str) -> torch.Tensor:
    """Return the scale of one place, around 1."""
    weights = [layer.get_parameter(f"{name}.weight").data for name in fold.readers]
    squares = sum(weight.square().mean(0) / weight.square().mean().clamp(min=1e-30) for weight in weights)
    assert not isinstance(squares, int)
    sizes = squares.unflatten(0, (fold.heads, fold.repeated, -1)).mean(1).flatten().sqrt()
    scale = sizes.clamp(min=1e-3 * float(sizes.max())).pow(-ALPHA)  # a column of zeros needs none
    scale = scale / scale.log().mean().exp()
    giver = layer.get_parameter(f"{fold.giver}.weight").data
    return storable(scale, giver, dtype) if giver.dim() == 1 else scale

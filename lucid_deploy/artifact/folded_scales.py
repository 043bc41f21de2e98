"""Scales that AWQ folds into weights: the artifact's file of them, and how they change a checkpoint's weights.

A product W x stays what it is when the columns of W are multiplied by s and what gives x is divided by it: the norm
before, or the rows (and the bias) of another product. The graphs hold the results and need no scales; what compares an
artifact's weights with its checkpoint's does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import CheckFailed, in_one_line

if TYPE_CHECKING:
    import torch

FILE = "folded_scales.safetensors"
INPUTS, OUTPUTS = ".inputs", ".outputs"  # behind a weight's name: its columns were multiplied, its rows divided
Scales = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def read_scales(directory: Path) -> Scales:
    """Return an artifact's scales, float32 by name and :data:`INPUTS` or :data:`OUTPUTS`; empty where it has none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = directory / FILE
    try:
        found: Scales = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise CheckFailed(f"{path} is damaged: {in_one_line(error)}. Export it again.") from error
    return found


def write_scales(directory: Path, scales: Scales) -> None:
    """Write an artifact's scales; no file where there are none."""
    from safetensors.numpy import save_file

    if scales:
        save_file({name: np.ascontiguousarray(scale) for name, scale in scales.items()}, directory / FILE)


def scaled(weight: torch.Tensor, name: str, scales: Scales, back: bool = False) -> torch.Tensor:
    """Apply scales to a weight: float32, or the weight itself if there are none for it.

    Args:
        weight: ``(out, in)``, or ``(out,)`` of a norm or a bias.
        back: Undo it: from a scaled weight to the one before.
    """
    import torch

    inputs, outputs = (scales.get(name + part) for part in (INPUTS, OUTPUTS))
    if inputs is not None:
        columns = torch.from_numpy(inputs)
        weight = weight.float() / columns if back else weight.float() * columns
    if outputs is not None:
        rows = torch.from_numpy(outputs).unflatten(0, (-1, *([1] * (weight.dim() - 1))))  # (out, 1) or (out,)
        weight = weight.float() * rows if back else weight.float() / rows
    return weight

"""Where a scale of a layer's input can go: into the norm before it, or into the rows of another product.

No kind of layer is asked what it computes. A place is right if the layer gives the same with scales there and in the
products that read them: that is tried, in float64. So the input of q, k and v is divided in the norm before them, that
of ``down`` in the rows of ``up``, and that of ``o`` in those of ``v`` where every query head has a value head of its
own. Where there is no such place, as behind a delta rule, the input stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.artifact.folded_scales import INPUTS, OUTPUTS, Scales, scaled

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from lucid_deploy.model.checkpoint import Checkpoint

_PROBE = 5  # tokens that it is tried with
_SAME = 1e-9  # of float64's outputs, which rounding changes by 1e-15 and another function by far more
Run = Callable[["nn.Module", "torch.Tensor"], "torch.Tensor"]


def with_scales(checkpoint: Checkpoint, scales: Scales) -> Checkpoint:
    """Return the checkpoint with scales in its weights, by the checkpoint's names of them."""
    changed = copy.copy(checkpoint)
    changed.tensor = lambda name: scaled(checkpoint.tensor(name), name, scales)  # type: ignore[method-assign]
    return changed


@dataclass(frozen=True)
class Fold:
    """A place for the scale of an input.

    Attributes:
        giver: The part of the layer that gives the input, by its name: a norm or a linear layer.
        readers: The linear layers that read it, and nothing else does.
    """

    giver: str
    readers: tuple[str, ...]

    def apply(self, layer: nn.Module, scale: torch.Tensor) -> None:
        """Divide what gives the input by a scale ``(in,)``, and multiply the readers' columns by it."""
        giver = layer.get_submodule(self.giver)
        for parameter in giver.parameters(recurse=False):  # a weight, and a bias
            parameter.data = parameter.data / scale.unflatten(0, (-1, *([1] * (parameter.dim() - 1))))
        for name in self.readers:
            weight = layer.get_submodule(name).weight
            weight.data = weight.data * scale  # not in place: it may be the file itself

    def scales(self, prefix: str, layer: nn.Module, scale: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the scale by the names of the tensors that it changes.

        Args:
            prefix: Of the layer's names in the checkpoint.
            layer: The layer.
            scale: ``(in,)``.
        """
        found = {f"{prefix}{name}.weight{INPUTS}": scale.numpy() for name in self.readers}
        parameters = layer.get_submodule(self.giver).named_parameters(recurse=False)
        return found | {f"{prefix}{self.giver}.{name}{OUTPUTS}": scale.numpy() for name, _ in parameters}


def find_folds(layer: nn.Module, run: Run, x: torch.Tensor, groups: Sequence[Sequence[str]]) -> list[Fold | None]:
    """Find a place for the scale of each input.

    Args:
        layer: The layer.
        run: Runs a copy of it in float64 over ``(B, N, C)``.
        x: What it may be given.
        groups: Names of its linear parts that read the same tensor, in the order they run.

    Returns:
        For each group where its scale goes; None: nowhere.
    """
    import torch

    wide, given = copy.deepcopy(layer).double(), x[:1, :_PROBE].double()
    before = run(wide, given)
    norms = [
        name
        for name, part in layer.named_modules()
        if not isinstance(part, torch.nn.Linear) and [p.dim() for p in part.parameters(recurse=False)] == [1]
    ]
    found: list[Fold | None] = []
    earlier: list[str] = []
    for group in groups:
        width = layer.get_submodule(group[0]).weight.shape[1]
        candidates = [name for name in (*norms, *reversed(earlier)) if len(layer.get_submodule(name).weight) == width]
        folds = (Fold(name, tuple(group)) for name in candidates)
        found.append(next((fold for fold in folds if _is_same(fold, wide, run, given, before)), None))
        earlier += group
    return found


def _is_same(fold: Fold, layer: nn.Module, run: Run, x: torch.Tensor, before: torch.Tensor) -> bool:
    import torch

    kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    width = len(layer.get_submodule(fold.giver).weight)
    scale = torch.exp2(torch.linspace(-1, 1, width, dtype=torch.float64)[torch.arange(width) * 7 % width])
    fold.apply(layer, scale)
    after = run(layer, x)
    layer.load_state_dict(kept)
    return bool((after - before).abs().max() <= _SAME * before.abs().max())


def storable(scale: torch.Tensor, norm: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return the scale nearest to ``scale`` by which a norm is divided exactly to numbers of a type.

    Args:
        scale: ``(in,)``.
        norm: The norm's weight, float32 ``(in,)``.
        dtype: That it is stored in.
    """
    import torch

    stored = (norm / scale).to(getattr(torch, dtype)).float()
    return torch.where((stored != 0) & stored.isfinite(), norm / stored, torch.ones_like(scale))

"""Scales that cancel: the columns of weights are multiplied by them, and the norm or layer before is divided by them.

Only norms and rows of linear layers are divided, never K: the solve needs the keys that it was trained with. No kind of
layer is special: a norm or linear layer qualifies if the outputs do not change when it is divided and its readers are
multiplied, which is tested in float64. So for the input of q, k and v, the norm before them is divided; for that of
``down``, the rows of ``up``; for that of ``o``, the rows of ``v``. Where nothing qualifies, as after a delta rule, the
input is not scaled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantized_bytes import INPUTS, OUTPUTS, Scales, scaled

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from lucid_deploy.model.checkpoint import Checkpoint

_PROBE = 5  # number of tokens to test a fold with
SAME = 1e-9  # largest accepted relative change of float64 outputs; rounding causes 1e-15, a wrong fold far more
Run = Callable[["nn.Module", "torch.Tensor"], "torch.Tensor"]


def with_scales(checkpoint: Checkpoint, scales: Scales) -> Checkpoint:
    """Return a view of the checkpoint with the scales folded into its weights."""
    changed = copy.copy(checkpoint)
    changed.tensor = lambda name: scaled(checkpoint.tensor(name), name, scales)  # type: ignore[method-assign]
    return changed


@dataclass(frozen=True)
class Fold:
    """The parameters into which an input's scales are folded: the norm or layer that produces it, and its readers."""

    giver: str  # name of the norm or linear layer that produces the input
    readers: tuple[str, ...]  # names of the linear layers that read it; nothing else reads it
    heads: int = 1  # key/value heads of the giver; the readers' input axis is (heads, repeated, head width)
    repeated: int = 1  # inputs per output of the giver: query heads that share a key/value head

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the readers' scales ``(in,)``, given those of the giver's outputs."""
        return scale.unflatten(0, (self.heads, 1, -1)).expand(-1, self.repeated, -1).flatten()

    def apply(self, layer: nn.Module, scale: torch.Tensor) -> None:
        """Divide the rows of ``giver`` by ``scale``, and multiply the columns of ``readers`` by it."""
        giver = layer.get_submodule(self.giver)
        for parameter in giver.parameters(recurse=False):  # a weight, and a bias
            parameter.data = parameter.data / scale.unflatten(0, (-1, *([1] * (parameter.dim() - 1))))
        for name in self.readers:
            weight = layer.get_parameter(f"{name}.weight")
            weight.data = weight.data * self.spread(scale)  # not in place: it may be memory-mapped

    def scales(self, prefix: str, layer: nn.Module, scale: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the scales to store, by the weight's name + ``INPUTS`` (multiplied) or ``OUTPUTS`` (divided)."""
        found = {f"{prefix}{name}.weight{INPUTS}": self.spread(scale).numpy() for name in self.readers}
        parameters = layer.get_submodule(self.giver).named_parameters(recurse=False)
        return found | {f"{prefix}{self.giver}.{name}{OUTPUTS}": scale.numpy() for name, _ in parameters}

    def changes_only(self, quantized: Collection[str], layer: nn.Module, prefix: str) -> bool:
        """Whether all weights that a scale changes, except a norm's, are quantized; other weights must not change."""
        is_norm = layer.get_parameter(f"{self.giver}.weight").dim() == 1
        changed = [*self.readers] if is_norm else [self.giver, *self.readers]
        return all(f"{prefix}{name}.weight" in quantized for name in changed)


def find_folds(
    layer: nn.Module, run: Run, x: torch.Tensor, groups: Sequence[Sequence[str]], heads: int = 0
) -> list[Fold | None]:
    """Find the fold for the scales of each group's input; None where there is none.

    Args:
        run: Runs the layer over ``(B, N, C)``; called with a float64 copy of the layer.
        groups: Names of the layer's linear modules in execution order, grouped by their input.
        heads: Number of key/value heads, for folds across query heads that share one; 0: try no such folds.
    """
    import torch

    wide, given = copy.deepcopy(layer).double(), x[:1, :_PROBE].double()
    before = run(wide, given)
    norms = [
        name
        for name, part in layer.named_modules()
        if not isinstance(part, torch.nn.Linear)
        and [(key, p.dim()) for key, p in part.named_parameters(recurse=False)] == [("weight", 1)]
    ]
    found: list[Fold | None] = []
    earlier: list[str] = []
    for group in groups:
        width = layer.get_parameter(f"{group[0]}.weight").shape[1]
        folds = []
        for name in (*norms, *reversed(earlier)):
            given_by = len(layer.get_parameter(f"{name}.weight"))
            if given_by == width:
                folds.append(Fold(name, tuple(group)))
            elif heads and name in earlier and width % given_by == 0 and given_by % heads == 0:
                folds.append(Fold(name, tuple(group), heads, width // given_by))
        found.append(next((fold for fold in folds if _is_same(fold, wide, run, given, before)), None))
        earlier += group
    return found


def _is_same(fold: Fold, layer: nn.Module, run: Run, x: torch.Tensor, before: torch.Tensor) -> bool:
    import torch

    kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    width = len(layer.get_parameter(f"{fold.giver}.weight"))
    scale = torch.exp2(torch.linspace(-1, 1, width, dtype=torch.float64)[torch.arange(width) * 7 % width])
    fold.apply(layer, scale)
    after = run(layer, x)
    layer.load_state_dict(kept)
    return bool((after - before).abs().max() <= SAME * before.abs().max())


def storable(scale: torch.Tensor, norm: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return scales near ``scale`` for which norm / scale is exact in ``dtype``; 1 where it would be 0 or infinite."""
    import torch

    stored = (norm / scale).to(getattr(torch, dtype)).float()
    return torch.where((stored != 0) & stored.isfinite(), norm / stored, torch.ones_like(scale))

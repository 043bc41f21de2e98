"""What a layer's products are given, over the calibration rows, and what they would be given had nothing been rounded.

Only moments are kept, ``(in, in)`` each, so memory does not grow with the text. Products that read the same input, such
as those of queries, keys and values, share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_PROBE = 4  # tokens with which the order of the products is found
Run = Callable[["torch.Tensor"], Any]


@dataclass
class InputMoments:
    """Means over tokens of an input x, and of d = x − y, where y is the same input in the exact model.

    Attributes:
        x_x: mean(x xᵀ), float64 ``(in, in)``.
        x_d: mean(x dᵀ).
        d_d: mean(d dᵀ).
    """

    x_x: torch.Tensor
    x_d: torch.Tensor
    d_d: torch.Tensor

    def target(self, weight: torch.Tensor, damping: float) -> torch.Tensor:
        """Return the weight W' whose outputs W' x are nearest to the exact ones W y: W − W mean(d xᵀ) mean(x xᵀ)⁻¹.

        Args:
            weight: W, ``(out, in)``.
            damping: Share of the mean of the diagonal of mean(x xᵀ) that is added to the diagonal.
        """
        import torch

        damped = self.x_x.clone()
        diagonal = damped.diagonal()
        diagonal += damping * diagonal.mean()
        diagonal[diagonal == 0] = 1
        change = torch.linalg.solve(damped, self.x_d)  # (mean(d xᵀ) mean(x xᵀ)⁻¹)ᵀ
        return weight - (weight.double() @ change.mT).to(weight.dtype)

    def output_error(self, rounded: torch.Tensor, weight: torch.Tensor) -> float:
        """Return the relative error of Ŵ x against W y, sqrt(mean‖Ŵ x − W y‖² / mean‖W x‖²).

        Args:
            rounded: Ŵ, ``(out, in)``.
            weight: W.
        """
        import torch

        lost = whole = 0.0
        x_x, x_d, d_d = (moment.to(weight.dtype) for moment in (self.x_x, self.x_d, self.d_d))
        step = max((1 << 22) // weight.shape[1], 1)
        for new, old in zip(rounded.split(step), weight.split(step), strict=True):
            error = new - old  # Ŵ x − W y = (Ŵ − W) x + W d: every term is small by itself, so float32 will do
            terms = (error @ x_x * error, 2 * (error @ x_d * old), old @ d_d * old)
            lost += sum(float(term.sum(dtype=torch.float64)) for term in terms)
            whole += float((old @ x_x * old).sum(dtype=torch.float64))
        return float((max(lost, 0.0) / whole) ** 0.5) if whole > 0 else 0.0


def shared_inputs(layer: nn.Module, run: Run, x: torch.Tensor) -> list[list[str]]:
    """Return the names of a layer's linear parts, in the order they run, those that read the same tensor together.

    Args:
        layer: The layer.
        run: Runs it over ``(B, N, C)``.
        x: An input of it.
    """
    import torch

    seen: list[tuple[str, torch.Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0])))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        run(x[:1, :_PROBE])
    finally:
        for handle in handles:
            handle.remove()
    groups: list[list[str]] = []
    last: torch.Tensor | None = None
    for name, given in seen:
        if given is not last:
            groups.append([])
        groups[-1].append(name)
        last = given
    return groups


def input_of(module: nn.Module, run: Run, x: torch.Tensor) -> torch.Tensor:
    """Return what a linear part is given when what holds it runs over ``(B, N, C)``; the rest does not run."""
    found: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found.append(args[0])
        raise _Seen

    handle = module.register_forward_pre_hook(look)
    try:
        run(x)
    except _Seen:
        pass
    finally:
        handle.remove()
    return found[0]


def input_moments(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> InputMoments:
    """Add up the moments of inputs ``(…, in)`` and of the exact model's, pair by pair."""
    found: InputMoments | None = None
    count = 0
    for given, exact in pairs:
        x = given.reshape(-1, given.shape[-1])
        d = x - exact.reshape(x.shape)
        parts = [(a.mT @ b).double() for a, b in ((x, x), (x, d), (d, d))]
        count += len(x)
        if found is None:
            found = InputMoments(*parts)
        else:
            for total, part in zip((found.x_x, found.x_d, found.d_d), parts, strict=True):
                total += part
    assert found is not None, "there are no inputs"
    for total in (found.x_x, found.x_d, found.d_d):
        total /= count
    return found


class _Seen(Exception):
    """Leaves a layer whose later parts are not needed."""

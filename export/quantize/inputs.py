"""What a layer's products are given, over the calibration rows, and what they would be given had nothing been rounded.

Only moments are kept, ``(in, in)`` each, so memory does not grow with the text. Products that read the same input, such
as those of queries, keys and values, share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.export.quantize.gptq import ColumnOrder

_PROBE = 4  # tokens with which the order of the products is found
_STRIPE = 1024  # rows of a symmetric matrix that are computed together
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

    def to(self, dtype: torch.dtype) -> InputMoments:
        """Return them in another type."""
        return InputMoments(*(moment.to(dtype) for moment in (self.x_x, self.x_d, self.d_d)))


class ProductErrors:
    """What a linear layer's outputs lose over the calibration rows when its weight W is replaced by another.

    Args:
        moments: Of its inputs, in the type of ``weight``. Every term below is small by itself, so float32 will do.
        weight: W, ``(out, in)``.
    """

    def __init__(self, moments: InputMoments, weight: torch.Tensor) -> None:
        self._moments, self._weight = moments, weight
        self._cross = weight @ moments.x_d.mT  # W mean(d xᵀ), (out, in)
        self._whole, self._inherited = (_trace(weight @ moment, weight) for moment in (moments.x_x, moments.d_d))

    def target(self, order: ColumnOrder) -> torch.Tensor:
        """Return the weight W' whose outputs W' x are nearest to the exact ones W y: W − W mean(d xᵀ) H⁻¹.

        Args:
            order: Of the damped H = mean(x xᵀ), see :func:`~lucid_deploy.export.quantize.gptq.column_order`.
        """
        return self._weight - order.divided(self._cross).to(self._weight.dtype)

    def of(self, rounded: torch.Tensor) -> float:
        """Return the relative error of Ŵ x against W y, sqrt(mean‖Ŵ x − W y‖² / mean‖W x‖²).

        Args:
            rounded: Ŵ, ``(out, in)``.
        """
        error = rounded - self._weight  # Ŵ x − W y = (Ŵ − W) x + W d
        lost = _trace((error @ self._moments.x_x).add_(self._cross, alpha=2), error) + self._inherited
        return float((max(lost, 0.0) / self._whole) ** 0.5) if self._whole > 0 else 0.0


def _trace(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return tr(a bᵀ), rows added up in float64."""
    import torch

    return float(torch.linalg.vecdot(a, b).sum(dtype=torch.float64))


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


def inputs_of(modules: Sequence[nn.Module], run: Run, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return what linear parts are given when what holds them runs over ``(B, N, C)``, and what it returns."""
    found: dict[nn.Module, torch.Tensor] = {}

    def look(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found[module] = args[0]

    handles = [module.register_forward_pre_hook(look) for module in modules]
    try:
        output = run(x)
    finally:
        for handle in handles:
            handle.remove()
    return [found[module] for module in modules], output


def input_moments(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> InputMoments:
    """Add up the moments of inputs ``(…, in)`` and of the exact model's, pair by pair."""
    import torch

    found: InputMoments | None = None
    count = 0
    for given, exact in pairs:
        x = given.reshape(-1, given.shape[-1])
        d = x - exact.reshape(x.shape)
        count += len(x)
        if found is None:
            width = x.shape[1]
            found = InputMoments(*(torch.zeros(width, width, dtype=torch.float64) for _ in range(3)))
        _add_symmetric(found.x_x, x)
        _add_symmetric(found.d_d, d)
        found.x_d += x.mT @ d
    assert found is not None, "there are no inputs"
    for total in (found.x_x, found.d_d):
        total.copy_(total.tril() + total.tril(-1).mT)
    for total in (found.x_x, found.x_d, found.d_d):
        total /= count
    return found


def _add_symmetric(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add xᵀ x to what is on and below the diagonal; above it stands something else."""
    for start in range(0, len(total), _STRIPE):
        total[start : start + _STRIPE, : start + _STRIPE] += x[:, start : start + _STRIPE].mT @ x[:, : start + _STRIPE]


class _Seen(Exception):
    """Leaves a layer whose later parts are not needed."""

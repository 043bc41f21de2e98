"""What a layer's products are given: the second moments of their inputs, over the calibration rows.

Only second moments are kept, ``(in, in)`` for each input, so memory does not grow with the text. Products that read the
same input, such as those of queries, keys and values, share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_PROBE = 4  # tokens with which the order of the products is found


def shared_inputs(layer: nn.Module, run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> list[list[str]]:
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


def second_moments(
    module: nn.Module, run: Callable[[torch.Tensor], Any], streams: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return mean(x xᵀ) of a linear part's inputs, float64 ``(in, in)``.

    Args:
        module: The part.
        run: Runs what holds it over ``(B, N, C)``; it is left once the part has its input.
        streams: What ``run`` is given.
    """
    moments = SecondMoments()

    def look(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        moments.add(args[0])
        raise _Seen

    handle = module.register_forward_pre_hook(look)
    try:
        for x in streams:
            try:
                run(x)
            except _Seen:
                continue
    finally:
        handle.remove()
    return moments.mean()


class SecondMoments:
    """Adds up x xᵀ."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._count = 0

    def add(self, x: torch.Tensor) -> None:
        """Take inputs ``(…, in)`` into account."""
        rows = x.reshape(-1, x.shape[-1])
        product = (rows.mT @ rows).double()
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._count += len(rows)

    def mean(self) -> torch.Tensor:
        """Return their mean, float64 ``(in, in)``."""
        assert self._sum is not None, "nothing was added"
        return self._sum / self._count


class _Seen(Exception):
    """Leaves a layer whose later parts are not needed."""

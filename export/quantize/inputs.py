"""Run a checkpoint layer by layer in float32, and measure the inputs of its linear layers over the calibration rows.

Inputs are compared with those of the exact model, in which nothing is rounded. Only moments are kept, ``(in, in)``
each, so memory does not grow with the text. Linear layers that read the same input, such as those of queries, keys and
values, share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.export.quantize.gptq import ColumnOrder
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.mixer import LayerCache, Mixer

Array = np.ndarray[Any, np.dtype[Any]]


def embedded(checkpoint: Checkpoint, prompts: Sequence[Array], table: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Embed prompts: float32 ``(B, N, C)`` for each int64 ``(B, N)``.

    Args:
        table: An embedding ``(vocab, C)`` in place of the checkpoint's.
    """
    import torch

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.first_streams(checkpoint, prompts, table)
    if table is None:
        table = checkpoint.tensor("model.embed_tokens.weight")
    return [table[torch.from_numpy(ids)].float() for ids in prompts]


def load_layer(checkpoint: Checkpoint, index: int) -> nn.Module:
    """Read one layer of a checkpoint, in float32."""
    import torch

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.load_layer(checkpoint, index)
    from lucid_deploy.model.block import make_layer

    with torch.device("meta"):
        layer = make_layer(checkpoint.config, index, "blocked")
    prefix = f"model.layers.{index}."
    state = {name: checkpoint.tensor(prefix + name).float() for name in layer.state_dict()}
    layer.load_state_dict(state, assign=True)
    return layer.eval()


def run_layer(layer: nn.Module, config: LucidConfig, index: int, x: torch.Tensor) -> tuple[torch.Tensor, LayerCache]:
    """Run one layer over whole sequences ``(B, N, C)``; return its output, of the same shape, and its cache."""
    import torch

    if config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.run_layer(layer, x)
    from lucid_deploy.model.mixer import layer_steps

    batch, n, _ = x.shape
    positions = torch.arange(n).expand(batch, n)
    step = layer_steps(config, positions, torch.float32)[index]
    found: tuple[torch.Tensor, LayerCache] = layer(x, step, mixer_of(layer).empty_cache(batch, x))
    return found


def mixer_of(layer: nn.Module) -> Mixer:
    """Return the module that mixes tokens in a layer of :func:`load_layer`."""
    model = vars(layer).get("lucid_model")  # a class of transformers calls it from outside of the layer
    found: Mixer = layer.mixer if model is None else model.mixers()[0]  # type: ignore[assignment]
    return found


def final_norm(checkpoint: Checkpoint, x: torch.Tensor) -> torch.Tensor:
    """Apply the norm before the head to the last layer's output; float32, same shape."""
    import torch.nn.functional as F

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.head_input(checkpoint, x)

    weight = checkpoint.tensor("model.norm.weight").float()
    return F.rms_norm(x, x.shape[-1:], weight, checkpoint.config.rms_norm_eps)


_PROBE = 4  # tokens to find the order of the linear layers with
_STRIPE = 1024  # rows of a symmetric matrix that are computed together
Run = Callable[["torch.Tensor"], Any]


@dataclass
class InputMoments:
    """Means over tokens of an input x, and of d = x − y, where y is the same input in the exact model."""

    x_x: torch.Tensor  # mean(x xᵀ), float64 (in, in)
    x_d: torch.Tensor  # mean(x dᵀ)
    d_d: torch.Tensor  # mean(d dᵀ)

    def to(self, dtype: torch.dtype) -> InputMoments:
        """Return them in another type."""
        return InputMoments(*(moment.to(dtype) for moment in (self.x_x, self.x_d, self.d_d)))


class ProductErrors:
    """Errors of a linear layer's outputs over the calibration rows when its weight W is replaced.

    Args:
        moments: Of its inputs, in the type of ``weight``; float32 is enough, since every term below is small.
    """

    def __init__(self, moments: InputMoments, weight: torch.Tensor) -> None:
        self._moments, self._weight = moments, weight
        self._cross = weight @ moments.x_d.mT  # W mean(d xᵀ), (out, in)
        self._whole, self._inherited = (_trace(weight @ moment, weight) for moment in (moments.x_x, moments.d_d))

    def target(self, order: ColumnOrder) -> torch.Tensor:
        """Return the weight W' whose outputs W' x are nearest to the exact ones W y: W − W mean(d xᵀ) H⁻¹."""
        return self._weight - order.divided(self._cross).to(self._weight.dtype)

    def of(self, rounded: torch.Tensor) -> float:
        """Return the relative error of Ŵ x against W y, sqrt(mean‖Ŵ x − W y‖² / mean‖W x‖²)."""
        error = rounded - self._weight  # Ŵ x − W y = (Ŵ − W) x + W d
        lost = _trace((error @ self._moments.x_x).add_(self._cross, alpha=2), error) + self._inherited
        return float((max(lost, 0.0) / self._whole) ** 0.5) if self._whole > 0 else 0.0


def _trace(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return tr(a bᵀ), rows added up in float64."""
    import torch

    return float(torch.linalg.vecdot(a, b).sum(dtype=torch.float64))


def shared_inputs(layer: nn.Module, run: Run, x: torch.Tensor) -> list[list[str]]:
    """Return the names of a layer's linear layers in the order they run, grouped by the tensor that they read."""
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
    """Return the input of a linear layer when its layer runs over ``(B, N, C)``; stop the run there."""
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
    """Return the inputs of linear layers when their layer runs over ``(B, N, C)``, and its output."""
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
    """Compute the moments of pairs of inputs ``(…, in)``: the rounded model's and the exact model's."""
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
    """Add xᵀ x on and below the diagonal; what is above it is meaningless until the end."""
    for start in range(0, len(total), _STRIPE):
        total[start : start + _STRIPE, : start + _STRIPE] += x[:, start : start + _STRIPE].mT @ x[:, : start + _STRIPE]


class _Seen(Exception):
    """Stop a layer whose remaining parts are not needed."""

"""Run a checkpoint layer by layer in float32, and measure the inputs of its linear layers over the calibration rows.

Of an input only its second moments are kept, ``(in, in)``, so memory does not grow with the text. Linear layers that
read the same input, such as those of queries, keys and values, share them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.mixer import LayerCache, Mixer

Array = np.ndarray[Any, np.dtype[Any]]


def embedded(checkpoint: Checkpoint, prompts: Sequence[Array]) -> list[torch.Tensor]:
    """Embed prompts: float32 ``(B, N, C)`` for each int64 ``(B, N)``."""
    import torch

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.first_streams(checkpoint, prompts)
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


class ExpertMoments:
    """The second moments of the inputs of a layer's experts, each over the tokens that chose the expert.

    Attributes:
        tokens: How often each expert was chosen, by the name of its stacked matrices and its index.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.tokens: Counter[tuple[str, int]] = Counter()
        self._moments: dict[tuple[str, int], torch.Tensor] = {}
        for path, module in layer.named_modules():
            if hasattr(module, "is_transposed"):  # experts of transformers' registry alone
                vars(module)["lucid_watchers"] = [functools.partial(self._add, path)]

    def _add(self, path: str, name: str, x: torch.Tensor, expert: torch.Tensor, _: torch.Tensor) -> None:
        for index in expert.unique().tolist():
            key, own = (f"{path}.{name}", index), x[expert == index]
            self._moments[key] = add_moments(self._moments.get(key), own)
            self.tokens[key] += len(own)

    def pop(self, name: str, index: int) -> torch.Tensor:
        """Return and forget the mean moments of an expert that was chosen, float64 ``(in, in)``."""
        return self._moments.pop((name, index)) / self.tokens[name, index]


def add_moments(total: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Add the second moments of an input ``(…, in)`` to those of others, float64 ``(in, in)``; None: there are none."""
    import torch

    x = x.reshape(-1, x.shape[-1])
    if total is None:
        total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for start in range(0, len(total), _STRIPE):
        rows = slice(start, start + _STRIPE)
        total[rows, : start + _STRIPE] += x[:, rows].mT @ x[:, : start + _STRIPE]
        total[:start, rows] = total[rows, :start].mT
    return total

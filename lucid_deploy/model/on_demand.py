"""The PyTorch model in float64 without its weights in float64: each is cast while it is used.

A reference runs few calls of many tokens, so casting costs little beside the products, and a model of 1.1 billion
parameters takes no 8.8 GB. Weights of safetensors stay in their mapped files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.lucid import LucidForCausalLM

Load = Callable[[str], Tensor]  # a parameter's name to its value, of any float type
ELEMENTS = 1 << 23  # of a weight that are cast at once: 64 MiB


def float64_on_demand(config: LucidConfig, load: Load) -> LucidForCausalLM:
    """Return the model in float64. What it computes is what a float64 model on the same weights does.

    Args:
        config: Its shape and variant.
        load: Gives a weight by its name, ``lm_head.weight`` of a tied model included; called whenever one is used.
    """
    with torch.device("meta"):
        model = LucidForCausalLM(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            wanted: nn.Module = _Embedding(load, name, config.hidden_size)
            if isinstance(module, nn.Linear):
                wanted = _Linear(load, name, module.bias is not None)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wanted)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):  # a norm: small
            module.weight = nn.Parameter(load(f"{name}.weight").double())
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and parameter.numel():  # one of a layer's own: as small
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Parameter(load(name).double()))
    return model.eval().requires_grad_(False)


class _Linear(nn.Module):
    """A linear layer, the head included, that reads its weight when it runs."""

    def __init__(self, load: Load, name: str, bias: bool) -> None:
        super().__init__()
        self._load, self._name, self._has_bias = load, name, bias

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``, float64."""
        weight = self._load(f"{self._name}.weight")
        rows = max(1, ELEMENTS // weight.shape[1])
        y = torch.cat([F.linear(x, piece.double()) for piece in weight.split(rows)], dim=-1)
        return y + self._load(f"{self._name}.bias").double() if self._has_bias else y


class _Embedding(nn.Module):
    """A table of which the rows that are used are read; its ``weight`` holds none, and says what type they become."""

    def __init__(self, load: Load, name: str, width: int) -> None:
        super().__init__()
        self._load, self._name = load, name
        self.weight = nn.Parameter(torch.empty((0, width), dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 ``(…)`` to float64 ``(…, width)``."""
        return F.embedding(ids, self._load(f"{self._name}.weight")).double()

"""Build the PyTorch model in float64 with weights of linear layers and embeddings that are cast while they are used.

This saves memory: 1.1 billion parameters in float64 take 8.8 GB. A reference runs few calls of many tokens, so casting
costs little beside the matrix products. The weights stay in their memory-mapped files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucid_deploy.model.build import make_model
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.float64 import types_as_written
from lucid_deploy.model.lucid import CausalModel
from lucid_deploy.model.parts import Head

Load = Callable[[str], Tensor]  # from a parameter's name to its value, of any floating-point type
ELEMENTS = 1 << 23  # at most this many elements of a weight are cast at a time: 64 MiB in float64


def float64_on_demand(config: LucidConfig, load: Load) -> CausalModel:
    """Return a model that computes in float64 without storing the weights of linear layers and embeddings.

    ``load`` returns a parameter by name, even a tied ``lm_head.weight``; these layers call it in every forward pass.
    """

    def load_as_stored(name: str) -> Tensor:
        with types_as_written():  # the model may run in a context that replaces float32 by float64
            return load(name)

    with torch.device("meta"):
        model = make_model(config)
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, nn.Embedding, Head):  # not subclasses, which compute something else
            wanted: nn.Module = _Embedding(load_as_stored, name, config.hidden_size)
            if isinstance(module, nn.Linear):
                wanted = _Linear(load_as_stored, name, module.bias is not None)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wanted)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if parameter.is_meta and parameter.numel():  # all others are small, except experts' and subclasses' weights
            parent, _, child = name.rpartition(".")
            value = load(name).double()
            setattr(
                model.get_submodule(parent),
                child,
                nn.Parameter(value) if child in model.get_submodule(parent)._parameters else value,
            )
    return model.eval().requires_grad_(False)


class _Linear(nn.Module):
    """A linear layer or language model head that loads its weight in every forward pass."""

    def __init__(self, load: Load, name: str, bias: bool) -> None:
        super().__init__()
        self._load, self._name, self._has_bias = load, name, bias

    def forward(self, x: Tensor) -> Tensor:
        """Map float64 ``(…, in)`` to ``(…, out)``."""
        weight = self._load(f"{self._name}.weight")
        rows = max(1, ELEMENTS // weight.shape[1])
        y = torch.cat([F.linear(x, piece.double()) for piece in weight.split(rows)], dim=-1)
        return y + self._load(f"{self._name}.bias").double() if self._has_bias else y


class _Embedding(nn.Module):
    """An embedding that loads its weight in every forward pass; its ``weight`` is empty and only has the dtype."""

    def __init__(self, load: Load, name: str, width: int) -> None:
        super().__init__()
        self._load, self._name = load, name
        self.weight = nn.Parameter(torch.empty((0, width), dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        """Look up token ids, int64 ``(…)``; return float64 ``(…, width)``."""
        return F.embedding(ids, self._load(f"{self._name}.weight")).double()

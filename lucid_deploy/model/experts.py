"""The mixture of experts of Qwen3-Next and Qwen3.5, whose layers are ours; classes of transformers bring their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.families.family import StoredParameter
from lucid_deploy.model.parts import ACTIVATIONS, MLP
from lucid_deploy.plugins.expert_matmul.torch_operator import expert_matmul
from lucid_deploy.plugins.shared.keys import compute_dtype


def expert_product(module: Any, name: str, x: Tensor, expert: Tensor) -> Tensor:
    """Multiply rows ``(R, in)`` by a matrix of their experts ``(R,)``, and add its bias if there is one.

    The matrices are ``(E, out, in)``, or ``(E, in, out)`` where ``module.is_transposed``. The module's
    ``lucid_watchers`` are called with the name, the input and the output of each product.
    """
    weight = getattr(module, name)
    product = expert_matmul(x, expert, weight.transpose(-1, -2) if module.is_transposed else weight)
    if module.has_bias:
        product = product + getattr(module, f"{name}_bias")[expert]
    for watch in vars(module).get("lucid_watchers", ()):
        watch(name, x, product)
    return product


class _Experts(nn.Module):
    """The experts' matrices; E experts, F their width, C hidden width."""

    is_transposed, has_bias = False, False

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))  # (E, 2F, C)
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))  # (E, C, F)


class SparseMLP(nn.Module):
    """The k experts that the router chooses for a token, weighted, and one that all tokens share, behind a gate."""

    def __init__(self, config: LucidConfig) -> None:
        super().__init__()
        mixture = config.mixture
        assert mixture is not None
        self._mixture, self._activation = mixture, ACTIVATIONS[config.hidden_act]
        self.gate = nn.Linear(config.hidden_size, mixture.count, bias=False)  # the router
        self.experts = _Experts(mixture.count, mixture.width, config.hidden_size)
        self.shared_expert = MLP(dataclasses.replace(config, intermediate_size=mixture.shared_width))
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` to ``(B, N, C)``."""
        tokens = x.reshape(-1, x.shape[2])  # (T, C)
        work, chosen = compute_dtype(x.dtype), self._mixture.chosen
        weight, expert = self.gate(tokens).to(work).softmax(-1).topk(chosen, dim=-1)  # (T, k)
        if self._mixture.normalized:
            weight = weight / weight.sum(-1, keepdim=True)
        rows, expert = tokens[:, None].expand(-1, chosen, -1).reshape(-1, x.shape[2]), expert.reshape(-1)  # (T·k, C)
        gate_up = expert_product(self.experts, "gate_up_proj", rows, expert)  # (T·k, 2F)
        gate, up = gate_up.to(work).chunk(2, dim=-1)
        product = (self._activation(gate) * up).to(x.dtype)  # (T·k, F)
        down = expert_product(self.experts, "down_proj", product, expert)  # (T·k, C)
        routed = down.to(work) * weight.reshape(-1, 1)
        shared = self.shared_expert_gate(tokens).to(work).sigmoid() * self.shared_expert(tokens).to(work)
        total = routed.reshape(-1, chosen, x.shape[2]).sum(1) + shared
        return total.to(x.dtype).reshape(x.shape)


def stored_experts(name: str, config: LucidConfig) -> StoredParameter:
    """Return where the matrices of all experts lie, which checkpoints store one by one."""
    mixture = config.mixture
    assert mixture is not None
    prefix, _, part = name.rpartition(".")
    names: tuple[str, ...] = ("gate_proj", "up_proj")
    shape = (mixture.width, config.hidden_size)
    if part == "down_proj":
        names, shape = ("down_proj",), (config.hidden_size, mixture.width)
    parts = tuple((f"{prefix}.{index}.{part}.weight", shape) for index in range(mixture.count) for part in names)

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).reshape(mixture.count, len(names) * shape[0], shape[1])

    return StoredParameter(name, parts=parts, join=join)

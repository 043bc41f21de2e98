"""Unmerged LoRA adapters in a PyTorch model: each row of a batch selects one.

A linear layer y = x Wᵀ becomes y = x Wᵀ + (x A_i) B_i, where i is the row's adapter. The matrices of all adapters are
stacked: A ``[slots, in, rank]``, B ``[slots, rank, out]``, with the scale in B. Slot 0 is all zeros: the base model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lucid_deploy.errors import LucidError
from lucid_deploy.model.lucid import CausalModel

A, B = ".lora_A", ".lora_B"  # appended to a linear layer's name: the names of its stacked matrices


@dataclass(frozen=True)
class Slots:
    """The adapter slots of a model: which linear layers have them, how many adapters fit, and their rank."""

    targets: tuple[str, ...]  # names of linear layers within a layer, such as self_attn.q_proj, and lm_head
    count: int  # the maximum number of adapters, not counting slot 0 (the base model)
    rank: int  # the rank of the stacked matrices: the maximum rank of an adapter


def linear_layers(model: CausalModel) -> dict[str, nn.Linear]:
    """Return the linear layers that may have adapters, by name.

    Mixture-of-experts blocks are excluded, because their inputs do not show which row of the batch a token belongs to;
    a tied head is excluded, because its weight is also the embedding.
    """
    modules = dict(model.named_modules())
    mixtures = tuple(name.rpartition(".")[0] + "." for name in modules if name.endswith(".experts"))
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
        and not (mixtures and name.startswith(mixtures))
        and not (name == "lm_head" and model.config.tie_word_embeddings)
    }


def target_of(name: str) -> str:
    """Return a linear layer's name below its layer: ``self_attn.q_proj`` of ``model.layers.0.self_attn.q_proj``."""
    return name.removeprefix("model.layers.").partition(".")[2] if name.startswith("model.layers.") else name


class AdapterRows:
    """Adds zero-initialized adapter matrices to linear layers, and selects the adapter of each row of a batch.

    Attributes:
        ids: The slot of each row in the next calls, int64 ``(B,)``; None: every row uses slot ``default``.
        default: The slot of every row if ``ids`` is None.
    """

    def __init__(self, model: CausalModel, slots: Slots) -> None:
        self.ids: Tensor | None = None
        self.default = 0
        like = model.embedding
        for name, linear in linear_layers(model).items():
            if target_of(name) in slots.targets:
                zeros = functools.partial(torch.zeros, dtype=like.dtype, device=like.device)
                a = zeros(slots.count + 1, linear.in_features, slots.rank)
                b = zeros(slots.count + 1, slots.rank, linear.out_features)
                for part, value in ((A, a), (B, b)):
                    linear.register_parameter(part[1:], nn.Parameter(value, requires_grad=False))
                linear.register_forward_hook(functools.partial(self._add, name))

    def _add(self, name: str, linear: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]  # (B, N, in)
        if x.dim() != 3:
            raise LucidError(f"{name} gets an input without a batch axis, so its rows cannot use different adapters")
        ids = x.new_full(x.shape[:1], self.default, dtype=torch.int64) if self.ids is None else self.ids
        a, b = linear.lora_A.index_select(0, ids), linear.lora_B.index_select(0, ids)
        return output + (x.to(a.dtype) @ a @ b).to(output.dtype)

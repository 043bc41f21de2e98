"""Positions in transformers classes that number positions, embed them or rotate by them in their own way.

Some classes number tokens from the padding token's id plus one. Decoders of translation models count positions in their
embedding from the length of transformers' cache, which is unused here. Image models use three positions per token.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucid_deploy.errors import LucidError

_POSITIONS: ContextVar[Tensor | None] = ContextVar("positions", default=None)


@contextlib.contextmanager
def given_positions(positions: Tensor | None) -> Iterator[None]:
    """Make the modules of :func:`put_positions` embed these positions ``(B, N)`` within the block."""
    before = _POSITIONS.set(positions)
    try:
        yield
    finally:
        _POSITIONS.reset(before)


class _GivenPositions(nn.Module):
    """Embeds the positions of :func:`given_positions`, whatever arguments the class passes."""

    def __init__(self, weight: Tensor, offset: int) -> None:
        super().__init__()
        self.weight, self.offset = weight, offset

    def forward(self, *_: Any, **__: Any) -> Tensor:
        positions = _POSITIONS.get()
        assert positions is not None, "a class was called without positions"
        return F.embedding(positions + self.offset, self.weight)


def put_positions(net: Any) -> None:
    """Replace embeddings that count positions themselves if their parent module takes no ``position_ids``."""
    for path, module in list(net.named_modules()):
        if not isinstance(module, nn.Embedding) or "cache_length" not in inspect.signature(module.forward).parameters:
            continue
        parent = net.get_submodule(path.rpartition(".")[0])
        if "position_ids" not in inspect.signature(parent.forward).parameters:
            offset = int(getattr(module, "offset", 0))
            setattr(parent, path.rpartition(".")[2], _GivenPositions(module.weight, offset))


class _Rotary(nn.Module):
    """Rotary cosines and sines for text, whose positions in time, height and width are equal."""

    def __init__(self, inv_freq: Tensor, scale: float) -> None:
        super().__init__()
        self.inv_freq, self.scale = nn.Buffer(inv_freq, persistent=False), scale

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        positions = position_ids[0] if position_ids.dim() == 3 else position_ids  # (B, N)
        frequencies = self.inv_freq.to(device=x.device, dtype=torch.float32)
        angles = positions[:, :, None].float() * frequencies  # (B, N, R/2)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scale).to(x.dtype), (angles.sin() * self.scale).to(x.dtype)


def put_rotary(net: Any) -> None:
    """Replace rotary modules of image models (three positions per token, equal in text) by ours if results agree.

    Tracing the original modules would take seconds.
    """
    for path, module in list(net.named_modules()):
        if not hasattr(module, "mrope_section") or list(module.parameters()) or module.inv_freq.is_meta:
            continue
        ours = _Rotary(module.inv_freq, module.attention_scaling)
        ids = torch.arange(10, device="cpu").reshape(2, 5).expand(3, 2, 5)
        with torch.no_grad():
            x = torch.zeros(1, dtype=torch.float64, device="cpu")
            same = all(torch.equal(one, other) for one, other in zip(ours(x, ids), module(x, ids), strict=True))
        if same:
            setattr(net.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], ours)


def first_position(net: Any) -> int:
    """Return the position of a text's first token: 0, or the padding token's id plus one."""
    for module in net.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            if not isinstance(getattr(module, "padding_idx", None), int):
                raise LucidError("its positions start at pad_token_id + 1, and config.json has no pad_token_id")
            return int(module.padding_idx) + 1
    return 0

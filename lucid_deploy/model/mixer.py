"""The base class of mixers, such as attention, and the arguments that all layers of a call share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig, Rope
from lucid_deploy.model.rope import rope_tables

LayerCache: TypeAlias = tuple[Tensor, ...]  # the tensors of a layer's layout, in order
_T = TypeVar("_T")


@dataclass(frozen=True)
class Step:
    """The arguments of a layer besides its input and cache; all layers of a call share them except ``rope``.

    Shapes: B batch, N new tokens, P cached columns, M rows of a static cache's buffers, D head width.
    """

    # bool (B, P + N), False at padding; None: no padding. With a static cache (B, M + N), the new tokens last
    mask: Tensor | None = None
    decode: bool = False  # whether to use the path for one or a few new tokens
    # cosine and sine of the new tokens' rotary angles, (B, 1, N, D/2) each; None: the mixer does not rotate
    rope: tuple[Tensor, Tensor] | None = None
    cache_length: Tensor | None = None  # int64 (B,), with a static cache: the number of filled rows of each buffer
    # the results of once(), shared by the layers of a call
    computed: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the result of ``make``, which is called once per key and forward pass of the model."""
        if key not in self.computed:
            self.computed[key] = make()
        value: _T = self.computed[key]
        return value


class Mixer(nn.Module):
    """A module that mixes each token of a sequence with earlier ones, such as attention."""

    @abstractmethod
    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Mix new tokens ``(B, N, C)``; return the output, of the same shape, and the extended cache."""

    @abstractmethod
    def empty_cache(self, batch: int, like: Tensor) -> LayerCache:
        """Return the cache before the first token, on the device of ``like``; by default, rows have its type."""

    def store_cache_as(self, cache_dtype: str, dtype: torch.dtype) -> None:
        """Set the type of cached rows, see :mod:`lucid_deploy.cache.storage`; ``dtype`` is the model's type."""

    def decode_cache(self, stored: LayerCache, dtype: torch.dtype) -> LayerCache:
        """Convert stored rows to ``dtype``, applying and dropping their scales; states are unchanged."""
        return stored

    def encode_cache(self, decoded: LayerCache) -> LayerCache:
        """Convert a cache from :meth:`decode_cache` back to its stored form."""
        return decoded


def layer_steps(
    config: LucidConfig,
    positions: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    decode: bool = False,
    cache_length: Tensor | None = None,
) -> list[Step]:
    """Return a step for every layer; layers with equal rotary settings share tables.

    ``positions`` are the new tokens' positions, int64 ``(B, N)``; None only in a model without rotary positions.
    """
    ropes = [config.rope(index) for index in range(config.num_hidden_layers)]
    tables: dict[Rope, tuple[Tensor, Tensor]] = {}
    for rope in ropes:
        if rope is not None and rope not in tables:
            assert positions is not None
            tables[rope] = rope_tables(rope, config.head_dim, positions, dtype)
    computed: dict[Hashable, Any] = {}
    return [Step(mask, decode, None if rope is None else tables[rope], cache_length, computed) for rope in ropes]

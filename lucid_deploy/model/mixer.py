"""What every layer's mixer (attention or what stands in its place) is given, and what it gives back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.rope import rope_tables
from lucid_deploy.model.rope_settings import Rope

LayerCache: TypeAlias = tuple[Tensor, ...]  # the tensors of a layer's layout, in order
_T = TypeVar("_T")


@dataclass(frozen=True)
class Step:
    """What all layers of one call share.

    Shapes: B batch, N new tokens, P cached columns, M rows of a static cache's buffers, D head width.

    Attributes:
        mask: Bool ``(B, P + N)``, False at padding; None: no padding. With a static cache ``(B, M + 1)``, the last
            column for the new token.
        decode: Whether to take the path for one new token, or a few.
        rope: Cosine and sine of the new tokens' rotary angles, ``(B, 1, N, D/2)`` each; None: no rotary positions.
        cache_length: Int64 ``(B,)``, with a static cache: how many rows of each buffer hold a token.
        made: What layers have made of the above, for the layers behind them, see :meth:`once`.
    """

    mask: Tensor | None = None
    decode: bool = False
    rope: tuple[Tensor, Tensor] | None = None
    cache_length: Tensor | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what ``make`` gives, made by the first layer of the call that asks for it.

        Args:
            key: Names it; the same for all layers for which it is the same.
            make: Makes it of what all layers share, and of no layer's own numbers.
        """
        if key not in self.made:
            self.made[key] = make()
        found: _T = self.made[key]
        return found


class Mixer(nn.Module):
    """Mixes tokens of a sequence with those before them."""

    @abstractmethod
    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Mix new tokens ``(B, N, C)``; return the output, of the same shape, and the cache with them in it."""

    @abstractmethod
    def empty_cache(self, batch: int, like: Tensor) -> LayerCache:
        """Return the cache before the first token, on the device and in the type of ``like`` where stored so."""

    def store_cache_as(self, cache_dtype: str, dtype: torch.dtype) -> None:
        """Keep cached rows in another type than the model's, see :mod:`lucid_deploy.cache.storage`.

        Args:
            cache_dtype: ``auto``, ``float16``, ``int8``, ``fp8`` or the model's type.
            dtype: The model's type.
        """

    def decode_cache(self, stored: LayerCache, dtype: torch.dtype) -> LayerCache:
        """Return what a stored cache means, without scales, in a type."""
        return stored

    def encode_cache(self, decoded: LayerCache) -> LayerCache:
        """Bring what :meth:`decode_cache` returns into the stored form."""
        return decoded

    @property
    def value_projection(self) -> nn.Module | None:
        """The part that makes V, which the solve reads; None if the layer has no solve."""
        return None


def layer_steps(
    config: LucidConfig,
    positions: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    decode: bool = False,
    cache_length: Tensor | None = None,
) -> list[Step]:
    """Return a step for every layer; layers that rotate by the same angles share their tables, and all what they make.

    Args:
        config: The model.
        positions: Of the new tokens, int64 ``(B, N)``; None only in a model that rotates nothing.
        dtype: Type of the model.
        mask: See :attr:`Step.mask`.
        decode: See :attr:`Step.decode`.
        cache_length: See :attr:`Step.cache_length`.
    """
    ropes = [config.rope(index) for index in range(config.num_hidden_layers)]
    tables: dict[Rope, tuple[Tensor, Tensor]] = {}
    for rope in ropes:
        if rope is not None and rope not in tables:
            assert positions is not None
            tables[rope] = rope_tables(rope, config.rotated, positions, dtype)
    made: dict[Hashable, Any] = {}
    return [Step(mask, decode, None if rope is None else tables[rope], cache_length, made) for rope in ropes]

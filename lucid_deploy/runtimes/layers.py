"""One call of a model with its insides in view: the residual stream, V, and the new rows of K and Y of every layer.

A session shows what a model gives; this shows where it comes from. Given residuals, every layer reads its own from
outside in place of its predecessor's output, so that a layer's own error is not mixed with what it was handed.

Shapes: B batch, P cached tokens, N new tokens, C hidden, KV key/value heads, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.runtimes.session import Array


@dataclass(frozen=True)
class Tokens:
    """The new tokens of one call.

    Attributes:
        input_ids: Int64 ``(B, N)``.
        mask: Bool ``(B, P + N)``, False at padding.
        positions: Int64 ``(B, N)``.
    """

    input_ids: Array
    mask: Array
    positions: Array

    @staticmethod
    def after(input_ids: Array, past: int = 0, mask: Array | None = None) -> Tokens:
        """Number new tokens ``(B, N)`` behind ``past`` cached ones, as a session does; mask None: no padding."""
        batch, n = input_ids.shape
        full = np.ones((batch, past + n), dtype=bool) if mask is None else mask
        positions = np.maximum(np.cumsum(full, axis=1, dtype=np.int64) - 1, 0)[:, past:]
        return Tokens(input_ids, full, positions)


@dataclass(frozen=True)
class States:
    """What one call computed, in float32 for half types, else in the model's own type.

    Attributes:
        residuals: Of the embedding and of every layer, each ``(B, N, C)``: layer i turns ``residuals[i]``, or what it
            was given in its place, into ``residuals[i + 1]``.
        keys: Per layer the new tokens' raw keys, ``(B, KV, N, D)``, as they are cached.
        values: Per layer their V, before the solve; with standard attention their Y, which is V.
        solved: Per layer their Y, as it is cached.
        logits: Of each row's last token, ``(B, 1, vocab)``.
    """

    residuals: list[Array]
    keys: list[Array]
    values: list[Array]
    solved: list[Array]
    logits: Array


Past = list[tuple[Array, Array]]  # per layer K and Y, each (B, KV, P, D)


class Layers(ABC):
    """A model whose layers can be run on given inputs.

    Attributes:
        config: The model's configuration.
        dtype: Its precision, as numpy spells it (``bfloat16`` included).
        cache_dtype: Type that K and Y are cached in, such as ``int8``; mostly the same.
    """

    def __init__(self, config: LucidConfig, dtype: str, cache_dtype: str) -> None:
        self.config = config
        self.dtype = dtype
        self.cache_dtype = cache_dtype

    def empty_past(self, batch: int = 1) -> Past:
        """Return the cache before the first token."""
        empty = np.zeros((batch, self.config.num_key_value_heads, 0, self.config.head_dim), dtype=np.float32)
        return [(empty, empty)] * self.config.num_hidden_layers

    @abstractmethod
    def run(self, tokens: Tokens, past: Past, residuals: list[Array] | None = None, decode: bool = False) -> States:
        """Run one call.

        Args:
            tokens: The new tokens.
            past: What is cached, of any float type; it is stored as the cache stores it.
            residuals: For every layer the residual to read, and last the one that the final norm reads, each
                ``(B, N, C)``, rounded to the model's type; None: each reads what the one before it gave.
            decode: Take the path for single tokens; N = 1.
        """


class ScoringLayers(Layers):
    """Layers that also give the logits of all tokens at once."""

    @abstractmethod
    def logits(self, input_ids: Array) -> Iterator[Array]:
        """Yield the logits of all tokens of one sequence ``(N,)`` in pieces ``(n, vocab)``, from one prefill."""

"""One interface for every runtime: a session prefills and decodes, a cache holds K, Y and what is padding.

Shapes: B batch, N new tokens, T tokens so far, KV key/value heads, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig

Tensor = TypeVar("Tensor")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Cache(Generic[Tensor]):
    """What a batch has seen so far.

    Attributes:
        mask: Bool ``(B, T)``, False at padding.
        layers: Per layer (K, Y), each ``(B, KV, T, D)``, in the runtime's own kind of tensor.
    """

    mask: Array
    layers: list[tuple[Tensor, Tensor]]

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.mask.shape[0])

    @property
    def length(self) -> int:
        """Tokens so far, padding included."""
        return int(self.mask.shape[1])


class Session(ABC, Generic[Tensor]):
    """A model ready to run.

    Attributes:
        config: The model's configuration.
        dtype: Type of its weights and cache, as numpy spells it (``bfloat16`` included).
        runtime: Name of what runs it, such as ``onnxruntime``.
        provider: onnxruntime's execution provider, such as ``cpu``; None with other runtimes.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
    """

    def __init__(self, config: LucidConfig, dtype: str, runtime: str, allow_extrapolation: bool = False) -> None:
        self.config = config
        self.dtype = dtype
        self.runtime = runtime
        self.provider: str | None = None
        self.allow_extrapolation = allow_extrapolation

    def empty_cache(self, batch: int = 1) -> Cache[Tensor]:
        """Return the cache before the first token."""
        shape = (batch, self.config.num_key_value_heads, 0, self.config.head_dim)
        empty = np.zeros(shape, dtype=np.float32)
        layers = [(empty, empty) for _ in range(self.config.num_hidden_layers)]
        return self.cache_from_arrays(layers, np.ones((batch, 0), dtype=bool))

    def cache_from_arrays(self, layers: list[tuple[Array, Array]], mask: Array) -> Cache[Tensor]:
        """Return a cache with given content.

        Args:
            layers: Per layer raw keys K and preconditioned values Y, float32 ``(B, KV, T, D)``.
            mask: Bool ``(B, T)``, False at padding.
        """
        return Cache(mask, self._layers_from_arrays(layers))

    def fork(self, cache: Cache[Tensor]) -> Cache[Tensor]:
        """Return a second cache that goes on from here on its own. Growing tensors are shared, not copied."""
        return Cache(cache.mask, list(cache.layers))

    def prefill(
        self,
        input_ids: Array,
        cache: Cache[Tensor],
        mask: Array | None = None,
        chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """Run new tokens after those in the cache, and add them to it.

        Args:
            input_ids: Int64 ``(B, N)``, N ≥ 1.
            cache: Changed in place. If an error is raised between chunks, it holds the chunks that were done.
            mask: Bool ``(B, N)``, False at padding; None: no padding.
            chunk: Run at most this many tokens at once, which bounds memory; None: all at once.
            progress: Called after each chunk with (tokens done, tokens in all).

        Returns:
            Logits of each row's last token, float ``(B, 1, vocab)``. In chunked prefill of right-padded rows, those of
            the last chunk that holds a token of the row.

        Raises:
            LucidError: Token ids outside the vocabulary, no tokens, too long a context, or shapes that do not fit.
        """
        input_ids = self._checked(input_ids, cache)
        n = input_ids.shape[1]
        mask = np.ones(input_ids.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if mask.shape != input_ids.shape:
            raise LucidError(f"The mask is {mask.shape}, the token ids are {input_ids.shape}.")
        if chunk is not None and chunk < 1:
            raise LucidError(f"A prefill chunk must hold at least one token, not {chunk}.")
        logits: Array | None = None
        for start in range(0, n, chunk or n):
            part = slice(start, start + (chunk or n))
            new = self._advance(input_ids[:, part], mask[:, part], cache, decode=False)
            has_token = mask[:, part].any(axis=1).reshape(-1, 1, 1)
            logits = new if logits is None else np.asarray(np.where(has_token, new, logits))
            if progress is not None:
                progress(min(part.stop, n), n)
        assert logits is not None
        return logits

    def decode(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """Run one new token per row after those in the cache, and add it to it.

        Args:
            input_ids: Int64 ``(B, 1)``.
            cache: Changed in place.
            mask: Bool ``(B, 1)``, False for rows that only wait for others; None: all are tokens.

        Returns:
            Logits, float ``(B, 1, vocab)``.

        Raises:
            LucidError: As :meth:`prefill`, or more than one token per row.
        """
        input_ids = self._checked(input_ids, cache)
        if input_ids.shape[1] != 1:
            raise LucidError(f"Decoding takes one token per row, not {input_ids.shape[1]}; use prefill for several.")
        mask = np.ones(input_ids.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        return self._advance(input_ids, mask, cache, decode=True)

    def _advance(self, input_ids: Array, mask: Array, cache: Cache[Tensor], decode: bool) -> Array:
        full = np.concatenate([cache.mask, mask], axis=1)
        positions = np.maximum(np.cumsum(full, axis=1, dtype=np.int64) - 1, 0)[:, cache.length :]
        run = self._run_decode if decode else self._run_prefill
        logits, layers = run(input_ids, full, positions, cache.layers)
        cache.mask, cache.layers = full, layers
        return logits

    def _checked(self, input_ids: Array, cache: Cache[Tensor]) -> Array:
        input_ids = np.asarray(input_ids)
        if input_ids.ndim != 2 or input_ids.shape[0] != cache.batch or not np.issubdtype(input_ids.dtype, np.integer):
            raise LucidError(
                f"Token ids must be whole numbers of shape (batch {cache.batch}, tokens), not {input_ids.dtype} "
                f"{input_ids.shape}."
            )
        if input_ids.shape[1] == 0:
            raise LucidError("There are no tokens to run: the prompt is empty.")
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise LucidError(
                f"Token id {wrong} is outside the vocabulary (0 to {self.config.vocab_size - 1}); the tokenizer may be "
                "another model's."
            )
        total, limit = cache.length + input_ids.shape[1], self.config.max_position_embeddings
        if total > limit and not self.allow_extrapolation:
            raise LucidError(
                f"The context would be {total} tokens, the model was made for {limit} (max_position_embeddings). "
                "Shorten it, or pass --allow-extrapolation."
            )
        return input_ids.astype(np.int64, copy=False)

    @abstractmethod
    def layer_arrays(self, cache: Cache[Tensor]) -> list[tuple[Array, Array]]:
        """Return the cache's K and Y per layer as numpy arrays, float32 for half types, else in their own type."""

    @abstractmethod
    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> list[tuple[Tensor, Tensor]]: ...

    @abstractmethod
    def _run_prefill(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, Tensor]]
    ) -> tuple[Array, list[tuple[Tensor, Tensor]]]: ...

    @abstractmethod
    def _run_decode(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, Tensor]]
    ) -> tuple[Array, list[tuple[Tensor, Tensor]]]: ...

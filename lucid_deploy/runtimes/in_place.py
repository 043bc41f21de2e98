"""Decoding in buffers that the caller holds, which some sessions can do: no row is copied when a request starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lucid_deploy.cache.layout import CacheLayout

Array = np.ndarray[Any, np.dtype[Any]]


class InPlaceDecoding(Protocol):
    """What :attr:`Session.in_place` gives. Shapes: B rows, KV key/value heads, M tokens a buffer has room for.

    Attributes:
        layout: What the layers cache.
    """

    layout: CacheLayout

    def bind_decode(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> Any:
        """Bind arrays to decoding, which reads them and writes each row's new token into its buffers.

        They must outlive the binding.

        Args:
            layers: Per layer the buffers, each ``(B, KV, M, ·)``; a ring's ``(B, KV, window, ·)``, a state as it is.
            mask: Int64 ``(B, M)``; 0 at padding. A row's tokens at and beyond its length are masked anyway.
            input_ids: Int64 ``(B, 1)``.
            positions: Int64 ``(B, 1)``.
            length: Int64 ``(B,)``, tokens in each row before the new one; the new row is written there.
        """
        ...

    def bind_several(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> Any:
        """Bind arrays to :meth:`Session.decode_several`: as :meth:`bind_decode`, with N tokens a row.

        Its rows are written from ``length`` on, which must leave room for all N. What is behind a row's tokens is
        padding, which nothing sees as long as the next step's length leaves it out.

        Args:
            layers: As for :meth:`bind_decode`, with rows alone.
            mask: As for :meth:`bind_decode`.
            input_ids: Int64 ``(B, N)``.
            positions: Int64 ``(B, N)``.
            length: Int64 ``(B,)``.
        """
        ...

    def run_bound(self, binding: Any) -> Array:
        """Run one step on what was bound; return logits, float ``(B, N, vocab)``, N = 1 of :meth:`bind_decode`."""
        ...

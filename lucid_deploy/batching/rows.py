"""The running rows of a batch, which decode together although their caches differ in length.

:class:`StaticRows`, for sessions that decode in place, keeps one set of buffers; each row has its own ``cache_length``,
and when a request starts or finishes, at most one row is copied (all if buffers are resized). :class:`MergedRows`, for
all other sessions, copies all rows into one left-padded cache in the step after a request starts or finishes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import CacheTensor, held, new_buffer
from lucid_deploy.runtimes.cache_rows import CacheRow, cache_of_rows, make_room, row_layers, take_back
from lucid_deploy.runtimes.graph_sessions import BoundStep, StaticSession
from lucid_deploy.runtimes.session import MOST, Array, Cache, Session

GRAIN = 256  # tokens; the length of new buffers is a multiple of this …
_SPARE = 8  # … and at least 1 / 8 more than the longest row, so that resizing stays cheap per token
_SHRINK = 2  # buffers more than this factor longer than needed are replaced, because each step reads whole buffers


class Rows(ABC):
    """The caches of the running rows, each under a key that the caller gives it."""

    @abstractmethod
    def join(self, key: int, cache: Cache[Any]) -> None:
        """Add a row. The cache has one row without padding; it is copied or shared, never changed."""

    @abstractmethod
    def leave(self, key: int) -> None:
        """Remove a row."""

    @abstractmethod
    def view(self, key: int) -> Cache[Any]:
        """Return a row's cache, which may share memory with the running rows: copy it to use it after the next step."""

    @abstractmethod
    def run(self, tokens: dict[int, list[int]]) -> dict[int, Array]:
        """Run one or more tokens of every row, all rows together; if any has several, call :meth:`keep` next.

        Returns:
            By key, the logits after each token of the row, float ``(tokens, vocab)``.
        """

    @abstractmethod
    def keep(self, kept: dict[int, int]) -> None:
        """Keep the first ``kept[key]`` tokens that the last :meth:`run` added to each row, and drop the others."""


def _padded(tokens: list[list[int]]) -> tuple[Array, Array]:
    """Return token ids padded on the right with zeros, int64 ``(rows, most tokens)``, and a mask, False at padding."""
    lengths = np.array([len(row) for row in tokens])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = [token for row in tokens for token in row]
    return ids, mask


def make_rows(session: Session[Any], rows: int) -> Rows:
    """Return a container for up to ``rows`` rows of a session."""
    return MergedRows(session) if session.in_place is None else StaticRows(session.in_place, rows)


class MergedRows(Rows):
    """Rows in one growing cache, padded so that each step's tokens go into the same columns in all rows."""

    def __init__(self, session: Session[Any]) -> None:
        self._session = session
        self._keys: list[int] = []  # in the order of the cache's rows
        self._cache: Cache[Any] | None = None
        self._joined: dict[int, Cache[Any]] = {}  # rows to add before the next run
        self._left: set[int] = set()  # rows to remove before the next run
        self._ran = 0  # columns of the last run …
        self._is_sound = True  # … and whether all logits of the last run of several columns are finite

    def join(self, key: int, cache: Cache[Any]) -> None:
        self._joined[key] = self._session.fork(cache)

    def leave(self, key: int) -> None:
        if self._joined.pop(key, None) is None:
            self._left.add(key)
        if self._left.issuperset(self._keys):  # all rows of the cache have left
            self._cache, self._keys, self._left = None, [], set()

    def view(self, key: int) -> Cache[Any]:
        if key in self._joined:
            return self._joined[key]
        assert self._cache is not None
        return cache_of_rows(self._session, row_layers(self._session, self._cache, [self._keys.index(key)]))

    def run(self, tokens: dict[int, list[int]]) -> dict[int, Array]:
        if self._joined or self._left:
            self._merge()
        assert self._cache is not None
        ids, mask = _padded([tokens[key] for key in self._keys])
        self._ran = ids.shape[1]
        make_room(self._session, self._cache, self._ran)
        if self._ran == 1:
            logits = self._session.decode(ids, self._cache)
        else:
            logits = self._session.decode_several(ids, self._cache, mask)
            self._is_sound = bool(np.isfinite(logits[mask]).all())
        return {key: logits[row, : len(tokens[key])] for row, key in enumerate(self._keys)}

    def keep(self, kept: dict[int, int]) -> None:
        assert self._cache is not None
        take_back(self._session, self._cache, self._ran, np.array([kept[key] for key in self._keys]), self._is_sound)

    def _merge(self) -> None:
        stay = [row for row, key in enumerate(self._keys) if key not in self._left]
        rows: list[CacheRow] = [] if self._cache is None else row_layers(self._session, self._cache, stay)
        keys = [self._keys[row] for row in stay]
        for key, cache in self._joined.items():
            rows += row_layers(self._session, cache, [0])
            keys.append(key)
        self._cache = cache_of_rows(self._session, rows) if rows else None
        self._keys, self._joined, self._left = keys, {}, set()


class StaticRows(Rows):
    """Rows in static buffers, K with shape ``(rows, KV heads, room, width)``, each row with its own length.

    Active rows come first, so that a step runs no empty slots. When a request finishes, its slot goes to a request that
    starts before the next step, otherwise to the last row. Memory that no row has used yet is not resident.
    """

    def __init__(self, decoding: StaticSession, rows: int) -> None:
        self._decoding = decoding
        self._slots: list[int | None] = []  # the key in each slot; None: a free slot between used ones (a hole)
        self._lengths = np.zeros((rows,), np.int64)
        self._adapters = np.zeros((rows,), np.int64)
        self._mask = np.ones((rows, 0), np.int64)  # no padding; the graph itself masks each row beyond its length
        self._layers: list[tuple[Array, ...]] = []
        self._steps: dict[tuple[int, int, bool], BoundStep] = {}  # by number of rows, tokens per row, and ``shared``
        self._ran = 0  # columns of the last call of :meth:`run`
        self._rows = rows

    @property
    def room(self) -> int:
        """Number of tokens that the buffers have room for in each row."""
        return int(self._mask.shape[1])

    def join(self, key: int, cache: Cache[Any]) -> None:
        slot = self._slots.index(None) if None in self._slots else len(self._slots)
        self._make_room(cache.length + 1, cache.layers)
        for (tensor, buffer), (_, array) in zip(self._tensors(self._layers), self._tensors(cache.layers), strict=True):
            held(tensor, buffer[slot : slot + 1], cache.length)[:] = held(tensor, array[:1], cache.length)
        self._lengths[slot], self._adapters[slot] = cache.length, cache.adapter_ids[0]
        self._slots[slot : slot + 1] = [key]

    def leave(self, key: int) -> None:
        slot = self._slots.index(key)
        written = min(int(self._lengths[slot]) + MOST, self.room)  # more than the length, if a step failed before keep
        for tensor, buffer in self._tensors(self._layers):
            held(tensor, buffer[slot : slot + 1], written)[:] = 0  # masking multiplies by 0, and 0 · NaN is NaN
        self._slots[slot] = None

    def view(self, key: int) -> Cache[Any]:
        slot = self._slots.index(key)
        length = int(self._lengths[slot])
        layers = [
            tuple(held(t, buffer[slot : slot + 1], length) for t, buffer in zip(layout, layer, strict=True))
            for layout, layer in zip(self._decoding.layout, self._layers, strict=True)
        ]
        return Cache(np.ones((1, length), dtype=bool), layers, self._adapters[slot : slot + 1].copy())

    def run(self, tokens: dict[int, list[int]]) -> dict[int, Array]:
        step, keys = self._bound_step(tokens)
        logits, self._ran = self._decoding.run_bound(step), step.input_ids.shape[1]  # (count, n, vocab)
        if self._ran == 1:
            self._lengths[: len(keys)] += 1
        return {key: logits[slot, : len(tokens[key])] for slot, key in enumerate(keys)}

    def run_beside(
        self, tokens: dict[int, list[int]], prompt: list[int], cache: Cache[Any]
    ) -> tuple[dict[int, Array], Array]:
        """Run a token of every row as :meth:`run` does and, in the same run, the next prompt tokens after ``cache``.

        Returns:
            What :meth:`run` returns, and the logits of the prompt's last token, float ``(1, vocab)``.
        """
        step, keys = self._bound_step(tokens, shared=True)
        logits, last = self._decoding.run_shared(step, np.array([prompt], np.int64), cache)
        self._lengths[: len(keys)] += 1
        return {key: logits[slot] for slot, key in enumerate(keys)}, last[0]

    def _bound_step(self, tokens: dict[int, list[int]], shared: bool = False) -> tuple[BoundStep, list[int]]:
        """Return a step with the rows' tokens in it, and the rows' keys in the order of slots."""
        keys = self._close_holes()
        ids, _ = _padded([tokens[key] for key in keys])  # no token attends to the padding, which is on the right
        count, n = ids.shape
        self._make_room(int(self._lengths[:count].max()) + n, self._layers)
        if (count, n, shared) not in self._steps:
            layers = [tuple(buffer[:count] for buffer in layer) for layer in self._layers]
            rows = (self._mask[:count], self._lengths[:count], self._adapters[:count])
            self._steps[count, n, shared] = self._decoding.bind(layers, *rows, n, shared)
        step = self._steps[count, n, shared]
        step.input_ids[:] = ids
        step.positions[:] = self._lengths[:count, None] + np.arange(n)
        return step, keys

    def keep(self, kept: dict[int, int]) -> None:
        for slot, key in enumerate(self._slots):
            if key is None:
                continue
            end = int(self._lengths[slot]) + self._ran
            self._lengths[slot] += kept[key]
            start = int(self._lengths[slot])
            if start < end:
                for layer in self._layers:
                    for buffer in layer:  # all of the sort rows: models with rings or states get no drafts
                        buffer[slot, :, start:end] = 0  # masking multiplies by 0, and 0 · NaN is NaN

    def _tensors(self, layers: list[Any]) -> list[tuple[CacheTensor, Array]]:
        """Return the tensors of all layers with their descriptions."""
        pairs = zip(self._decoding.layout, layers, strict=True)
        return [pair for layout, layer in pairs for pair in zip(layout, layer, strict=True)]

    def _close_holes(self) -> list[int]:
        """Move the last rows into the slots of removed ones; return the keys of all rows in the order of slots."""
        while None in self._slots:
            key = self._slots.pop()
            if key is None:
                continue
            source, hole = len(self._slots), self._slots.index(None)
            length = self._lengths[hole] = self._lengths[source]
            self._adapters[hole] = self._adapters[source]
            for tensor, buffer in self._tensors(self._layers):
                held(tensor, buffer[hole : hole + 1], int(length))[:] = held(
                    tensor, buffer[source : source + 1], int(length)
                )
            self._slots[hole] = key
        return [key for key in self._slots if key is not None]

    def _make_room(self, tokens: int, like: list[Any]) -> None:
        """Grow the buffers if ``tokens`` do not fit in a row, or shrink them if far too long; dtypes as in ``like``."""
        taken = [slot for slot, key in enumerate(self._slots) if key is not None]
        longest = max([tokens, *(int(self._lengths[slot]) + 1 for slot in taken)])
        room = -(-(longest + max(longest // _SPARE, 1)) // GRAIN) * GRAIN
        if longest <= self.room <= _SHRINK * room:
            return
        self._steps.clear()
        for index, (layout, layer) in enumerate(zip(self._decoding.layout, like, strict=True)):
            made = []  # layer by layer, so that only one layer is in memory twice
            for place, (tensor, array) in enumerate(zip(layout, layer, strict=True)):
                buffer = new_buffer(tensor, self._rows, room, array.dtype)
                for slot in taken:
                    part, length = slice(slot, slot + 1), int(self._lengths[slot])
                    held(tensor, buffer[part], length)[:] = held(tensor, self._layers[index][place][part], length)
                made.append(buffer)
            self._layers[index : index + 1] = [tuple(made)]
        self._mask = np.ones((self._rows, room), np.int64)

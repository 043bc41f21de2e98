"""A prefix cache: stores the caches of earlier texts in blocks of 32 tokens, which texts with the same prefix share.

A block is found by its digest, a hash of the previous block's digest and the block's token ids; the chain begins with a
hash of owner and adapter. So equal digests mean equal texts from the first token on, and a block's rows (K and Y) are
exact for all of these texts, because they depend on no later token.

Rows are copied into a cache when a request starts, and only the blocks that a text adds are copied back. The graphs
read the rows of a text as one contiguous array; reading blocks in place would need graphs with block tables. Copying is
cheap compared to prefill: 16 to 30 ms for 1,000 tokens of SmolLM2-135M (46 MB), which take 1.6 s on the same core.

Rings and states change with every token, and no graph returns their earlier values. They can only be copied where a run
of the graph ends, such as after a chunk of a prompt; the block that ends there has them as ``state``. With rings or
states, a text can only be continued after such a block, so most tokens of an answer run again in the next turn.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import CacheLayout, CacheTensor, bytes_per_token, held
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array, Cache, Session

BLOCK = 32  # tokens


def token_bytes(layout: CacheLayout) -> int:
    """Return the bytes that count as one token of the budget: its rows or, without rows, 1/32 of rings and states."""
    return bytes_per_token(layout) or -(-_state_bytes(layout) // BLOCK)


def _memory() -> float:
    """Return the bytes of memory of this machine; infinity if unknown, as on Windows."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else float("inf")


def _state_bytes(layout: CacheLayout) -> int:
    """Return the bytes of all rings and states of one text."""
    tensors = [tensor for layer in layout for tensor in layer if tensor.sort != "rows"]
    return sum(tensor.size(tensor.window or 1) for tensor in tensors)


@dataclass(eq=False)
class Block:
    """32 consecutive tokens of a text, and what the cache holds for them.

    Attributes:
        digest: Hash of owner, adapter and all token ids of the text up to the end of this block.
        parent: Digest of the previous block; empty for the first.
        rows: The block's rows of each tensor of the sort rows, ``(heads, 32, width)``, in the order of the layout.
        state: Rings and states after the block's last token, in the order of the layout; None: not stored.
        readers: Number of running requests that use this block; it is not dropped while there are any.
    """

    digest: bytes
    parent: bytes
    rows: list[Array]
    state: list[Array] | None = None
    readers: int = 0


class PrefixStore:
    """Stores blocks of texts within a budget; when it is full, drops the least recently used block without readers.

    Owners share the budget, but no blocks: otherwise response times would reveal to one client what another has sent.
    Keys and values depend on the adapter too, so texts with different adapters share no blocks.

    ``budget`` is the most tokens to store; 0 stores nothing. Rings and states count as the tokens whose rows take as
    much memory. The prefixes that :meth:`find` returns have a multiple of ``grain`` blocks.
    """

    def __init__(self, session: Session[Any], budget: int, grain: int = 1) -> None:
        if budget < 0:
            raise LucidError(f"The budget of the prefix store must be 0 tokens or more, not {budget}.")
        needed, memory = budget * token_bytes(session.layout), _memory()
        if needed > memory:
            raise LucidError(
                f"A prefix store of {budget} tokens (--prefix-cache-tokens) would take {needed / 2**30:.1f} GiB; this "
                f"machine has {memory / 2**30:.1f} GiB of memory."
            )
        self.capacity = budget // BLOCK  # in blocks
        self.has_states = any(tensor.sort != "rows" for layer in session.layout for tensor in layer)
        self._session, self._grain = session, grain
        self._tensors: list[CacheTensor] = [tensor for layer in session.layout for tensor in layer]
        self._state_cost = -(-_state_bytes(session.layout) // (token_bytes(session.layout) * BLOCK or 1))  # in blocks
        # The most recently used block comes last, and a block always comes after its successors in a text.
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._used = 0  # in blocks, states included

    @property
    def tokens(self) -> int:
        return len(self._blocks) * BLOCK

    @property
    def readers(self) -> int:
        return sum(block.readers for block in self._blocks.values())

    def takes(self, tokens: int) -> bool:
        """Return whether :meth:`add` may store a text of ``tokens`` tokens, or its prefix."""
        return tokens >= BLOCK and self.capacity > 0 and not (self.has_states and tokens % BLOCK)

    def find(
        self, ids: Sequence[int], most: int | None = None, owner: str = "", adapter: int = 0
    ) -> tuple[Cache[Any], list[Block]]:
        """Return a cache with the longest stored prefix of a text, at most ``most`` tokens, and its blocks.

        The blocks stay stored until they are passed to :meth:`release`. If nothing is found, the cache is empty.
        """
        blocks = self._known(self._digests(ids[:most], owner, adapter))
        while self.has_states and blocks and blocks[-1].state is None:
            blocks.pop()
        del blocks[len(blocks) // self._grain * self._grain :]
        for block in blocks:
            block.readers += 1
        self._touch(blocks)
        return self._cache(blocks, adapter), blocks

    def release(self, blocks: list[Block]) -> None:
        """Release the blocks that :meth:`find` returned, so that the store may drop them again."""
        for block in blocks:
            block.readers -= 1

    def add(self, ids: Sequence[int], cache: Cache[Any], owner: str = "") -> None:
        """Store the whole blocks of a text that are not stored yet, from its cache (one row without padding).

        If not all fit, store a prefix of the text or, with rings or states, nothing.
        """
        if cache.batch != 1 or not cache.mask.all() or cache.length != len(ids):
            raise LucidError(
                f"A prefix is stored from a cache of one row without padding; this one has {cache.batch} rows of "
                f"{cache.length} columns, for {len(ids)} token ids."
            )
        if not self.takes(len(ids)):
            return
        digests = list(self._digests(ids, owner, int(cache.adapter_ids[0])))
        chain = self._known(digests)
        new = digests[len(chain) :]
        adds_state = self.has_states and (bool(new) or chain[-1].state is None)
        wanted = len(new) + adds_state * self._state_cost
        if self.has_states and wanted > self.capacity:  # a prefix is of no use without its states
            return
        room = self._make_room(wanted, chain)
        if room < wanted:
            new, adds_state = [] if self.has_states else new[:room], False
        tensors = self._stored(cache)
        for digest in new:
            columns = slice(len(chain) * BLOCK, (len(chain) + 1) * BLOCK)
            rows = [array[0, :, columns].copy() for tensor, array in tensors if tensor.sort == "rows"]
            self._blocks[digest] = Block(digest, chain[-1].digest if chain else b"", rows)
            chain.append(self._blocks[digest])
        if adds_state:
            chain[-1].state = [array.copy() for tensor, array in tensors if tensor.sort != "rows"]
        self._used += len(new) + adds_state * self._state_cost
        self._touch(chain)

    def _digests(self, ids: Sequence[int], owner: str, adapter: int) -> Iterator[bytes]:
        """Yield the digest of every whole block of a text."""
        digest, tokens = _hash(repr((owner, adapter)).encode()), np.asarray(ids, dtype=np.int64)
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            digest = _hash(digest + tokens[start : start + BLOCK].tobytes())
            yield digest

    def _known(self, digests: Iterable[bytes]) -> list[Block]:
        return [self._blocks[digest] for digest in takewhile(self._blocks.__contains__, digests)]

    def _touch(self, blocks: list[Block]) -> None:
        """Mark a text's blocks as most recently used, last block first, so that a parent outlives its children."""
        for block in reversed(blocks):
            self._blocks.move_to_end(block.digest)

    def _make_room(self, wanted: int, chain: list[Block]) -> int:
        """Drop blocks without readers, except ``chain``, to make room for ``wanted``; return how many of these fit."""
        for block in chain:
            block.readers += 1
        while self._used + wanted > self.capacity:
            oldest = next((block for block in self._blocks.values() if not block.readers), None)
            if oldest is None:
                break
            del self._blocks[oldest.digest]
            self._used -= 1 + (oldest.state is not None) * self._state_cost
        self.release(chain)
        return max(0, min(wanted, self.capacity - self._used))

    def _stored(self, cache: Cache[Any]) -> list[tuple[CacheTensor, Array]]:
        """Return a cache's tensors and their descriptions, in stored form (such as int8 and scales), maybe as views."""
        layers = cache.layers  # numpy arrays if the session decodes in place, perhaps with free room after the rows
        if self._session.in_place is None:
            pairs = zip(self._session.layer_arrays(cache), self._session.layout, strict=True)
            layers = [encode_layer(arrays, layout) for arrays, layout in pairs]
        each = zip(self._tensors, (array for layer in layers for array in layer), strict=True)
        return [(tensor, held(tensor, array, cache.length)) for tensor, array in each]

    def _cache(self, blocks: list[Block], adapter: int) -> Cache[Any]:
        """Return a cache with copies of a text's blocks."""
        adapters = np.array([adapter], np.int64)
        if not blocks:
            return self._session.empty_cache(1, adapters)
        state, columns = iter(blocks[-1].state or ()), zip(*(block.rows for block in blocks), strict=True)
        each = (
            np.concatenate(next(columns), axis=1)[None] if tensor.sort == "rows" else next(state).copy()
            for tensor in self._tensors
        )
        layers = [tuple(next(each) for _ in layout) for layout in self._session.layout]
        mask = np.ones((1, len(blocks) * BLOCK), dtype=bool)
        if self._session.in_place is not None:
            return Cache(mask, layers, adapters)
        decoded = [decode_layer(stored, layout) for stored, layout in zip(layers, self._session.layout, strict=True)]
        return self._session.cache_from_arrays(decoded, mask, adapters)


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()

"""Sliding-window attention: standard attention over the last W tokens, with a ring of at most W rows as the cache.

A token attends to itself and the W − 1 tokens before it. Only tokens count: padding never pushes tokens out of the
ring, so each row of a batch gets the result that it would get alone.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lucid_deploy.model.attention.standard import StandardAttention, masked_attention
from lucid_deploy.model.mixer import LayerCache, Step


@dataclasses.dataclass(frozen=True)
class TokenColumns:
    """The token in each column of one call: first the R rows of the ring, then the N new columns."""

    # the number of the token in each column, int64 (B, R + N): 0 is the ring's newest, 1 the first new one; padding
    # among the new columns repeats the number before it
    counts: Tensor
    valid: Tensor  # which columns hold a token, bool (B, R + N)


def number_columns(
    mask: Tensor | None, batch: int, rows: int, n: int, window: int, device: torch.device
) -> TokenColumns:
    """Number the tokens in the columns of a call: R rows of the ring, then N new columns.

    Args:
        mask: Bool ``(B, P + N)``, False at padding; None: no padding.
        rows: R, the ring's number of rows, at most W.
    """
    ring = torch.arange(rows, device=device) - rows + 1  # (R,): … −1, 0
    if mask is None:
        counts = torch.cat([ring, torch.arange(n, device=device) + 1]).expand(batch, rows + n)
        return TokenColumns(counts, torch.ones_like(counts, dtype=torch.bool))
    new = mask[:, mask.shape[1] - n :]  # (B, N)
    before = mask[:, : mask.shape[1] - n].to(torch.int64).sum(1, keepdim=True)  # (B, 1): tokens so far
    filled = ring > -before.clamp(max=window)  # (B, R)
    counts = torch.cat([ring.expand(batch, rows), new.to(torch.int64).cumsum(1)], 1)  # (B, R + N)
    return TokenColumns(counts, torch.cat([filled, new], 1))


def newest_columns(valid: Tensor, window: int) -> Tensor:
    """Return the columns of the last W tokens in order, zero-padded in front: int64 ``(B, R')``, R' = min(R + N, W)."""
    batch, total = valid.shape
    later = valid.to(torch.int64).flip(1).cumsum(1).flip(1)  # (B, R + N): tokens from this column on
    place = torch.where(valid, -later + total, total)  # the target column; padding goes past the end and is dropped
    source = torch.zeros_like(place[:, :1]).expand(-1, total + 1)
    source = source.scatter(1, place, torch.arange(total, device=valid.device).expand(batch, total))  # (B, R + N + 1)
    return source[:, :total][:, -window:]


def select_columns(rows: Tensor, source: Tensor) -> Tensor:
    """Gather the next ring ``(B, KV, R', ·)``: the rows ``source``, ``(B, R')``, of ``rows``, ``(B, KV, R + N, ·)``."""
    batch, heads, total, width = rows.shape
    # Indexing the rows of one matrix exports as Gather; runtimes restrict GatherElements.
    first = torch.arange(batch * heads, device=rows.device).reshape(batch, heads, 1) * total
    picked = rows.reshape(batch * heads * total, width).index_select(0, (first + source[:, None]).reshape(-1))
    return picked.reshape(batch, heads, source.shape[1], width)


def push_row(ring: Tensor, row: Tensor, new: Tensor | None, window: int) -> Tensor:
    """Append one row to a ring ``(B, KV, R, ·)``, and keep the last W rows.

    Where ``new``, bool ``(B, 1)``, is False (padding), a zero row is added in front instead; None: no padding.
    """
    moved = torch.cat([ring, row], dim=2)[:, :, -window:]
    if new is None:
        return moved
    same = torch.cat([torch.zeros_like(row), ring], dim=2)[:, :, -window:]
    return torch.where(new[:, None, None, :], moved, same)


class WindowAttention(StandardAttention):
    """Grouped-query sliding-window attention: each token attends to itself and the W − 1 tokens before it."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Attend with a ring as the cache, in growing and in static caches alike."""
        batch, n = q.shape[0], q.shape[2]
        window = self.config.sliding_window
        assert window is not None
        k_past, v_past = self.codec.decode(past, q.dtype)  # (B, KV, R, D)
        rows = k_past.shape[2]  # the same in all layers with this window
        at = step.once(("places", window), lambda: number_columns(step.mask, batch, rows, n, window, q.device))
        seen = step.once(("visible", window), lambda: visible(at, n, window))
        keys, values = torch.cat([k_past, k], dim=2), torch.cat([v_past, v], dim=2)  # (B, KV, R + N, D)
        o = masked_attention(q, keys, values, seen[:, None], self.config.softcap, self.sinks)
        pairs = zip(past, self.codec.encode(k, v), strict=True)  # the ring's rows and the new ones
        if step.decode or step.cache_length is not None:
            new = None if step.mask is None else at.valid[:, -1:]
            present = tuple(push_row(old, row, new, window) for old, row in pairs)
        else:
            source = step.once(("newest", window), lambda: newest_columns(at.valid, window))
            present = tuple(select_columns(torch.cat([old, row], dim=2), source) for old, row in pairs)
        return o, present


def visible(at: TokenColumns, n: int, window: int) -> Tensor:
    """Return the attention mask, bool ``(B, N, R + N)``; padding sees itself, to keep its softmax finite."""
    total = at.counts.shape[1]
    distance = at.counts[:, total - n :, None] - at.counts[:, None]  # (B, N, R + N)
    column = torch.arange(total, device=at.counts.device)
    own = column[total - n :, None] == column  # (N, R + N)
    within = (distance >= 0).logical_and(distance < window)
    return at.valid[:, None].logical_and(within).logical_or(own)

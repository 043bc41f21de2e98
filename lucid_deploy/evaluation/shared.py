"""Run sequences with the same beginning: what they share runs once, in batches, with any session.

Shapes: B rows, N new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array, Cache, Session


@dataclass(frozen=True)
class TokenizedText:
    """Token ids to run.

    Attributes:
        ids: All of them.
        tail: So many at the end are not run with what is shared, because their logits are wanted; at least 1.
    """

    ids: list[int]
    tail: int = 1


@dataclass
class GroupBatch:
    """One sequence of each group, ready to run after what its group shares.

    Attributes:
        cache: Holds what is shared. It is this wave's own.
        input_ids: The rest, padded on the left, int64 ``(B, N)``.
        mask: Bool ``(B, N)``, False at padding.
        members: For each row its group and its place within the group; None: the row is padding alone.
    """

    cache: Cache[Any]
    input_ids: Array
    mask: Array
    members: list[tuple[int, int] | None]


def waves(
    session: Session[Any], groups: Sequence[Sequence[TokenizedText]], batch: int, room: int = 0
) -> Iterator[GroupBatch]:
    """Run what each group's sequences share, and yield their rests wave by wave.

    Args:
        session: What runs the model.
        groups: Sequences with the same beginning; none of the groups is empty.
        batch: Most groups to run at once. Fewer are taken where padding would need more than the context.
        room: Tokens that will follow each sequence.

    Raises:
        LucidError: A sequence and the room together exceed the context, an empty sequence, or a batch below 1.
    """
    if batch < 1:
        raise LucidError(f"A batch must hold at least one row, not {batch}.")
    batch = min(batch, session.batch_limit or batch)
    for group in groups:
        for sequence in group:
            if not sequence.ids:
                raise LucidError("A prompt is empty: it has no tokens.")
            session.check_length(len(sequence.ids) + room)
    prefixes = [_shared_length(group) for group in groups]
    longest = [max(len(sequence.ids) for sequence in group) for group in groups]
    # Groups of similar size side by side, the largest first: what does not fit in memory shows at once.
    order = sorted(range(len(groups)), key=lambda g: (-len(groups[g]), -prefixes[g], -longest[g], g))
    while order:
        count = _fitting(session, order[:batch], prefixes, longest, room)
        chosen, order = order[:count], order[count:]
        yield from _run(session, chosen, groups, prefixes)


def _run(
    session: Session[Any], chosen: list[int], groups: Sequence[Sequence[TokenizedText]], prefixes: list[int]
) -> Iterator[GroupBatch]:
    cache = session.empty_cache(len(chosen))
    if any(prefixes[g] for g in chosen):
        input_ids, mask = padded([groups[g][0].ids[: prefixes[g]] for g in chosen])
        session.prefill(input_ids, cache, mask, chunk=session.prefill_chunk)
    most = max(len(groups[g]) for g in chosen)
    for place in range(most):
        rests = [groups[g][place].ids[prefixes[g] :] if place < len(groups[g]) else [] for g in chosen]
        members = [(g, place) if place < len(groups[g]) else None for g in chosen]
        input_ids, mask = padded(rests)
        own = session.fork(cache) if place < most - 1 else cache
        yield GroupBatch(own, input_ids, mask, members)


def padded(rows: list[list[int]]) -> tuple[Array, Array]:
    """Return rows of unequal length padded on the left: token ids int64 ``(B, N)``, and what is a token, bool."""
    width = max(len(row) for row in rows)
    input_ids, mask = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = True
    return input_ids, mask


def _shared_length(group: Sequence[TokenizedText]) -> int:
    """How many tokens a group's sequences share in front of their tails."""
    if len(group) == 1 and group[0].tail == 1:
        return 0  # one run does it all
    first = group[0].ids
    length = min(len(sequence.ids) - sequence.tail for sequence in group)
    for sequence in group[1:]:
        length = next((i for i in range(length) if sequence.ids[i] != first[i]), length)
    return length


def _fitting(session: Session[Any], chosen: list[int], prefixes: list[int], longest: list[int], room: int) -> int:
    """How many groups can run side by side: padding counts towards the context. One always can."""
    limit = session.context_limit
    widest_prefix = widest_rest = count = 0
    for g in chosen:
        widest_prefix = max(widest_prefix, prefixes[g])
        widest_rest = max(widest_rest, longest[g] - prefixes[g])
        if count and limit is not None and widest_prefix + widest_rest + room > limit:
            break
        count += 1
    return count

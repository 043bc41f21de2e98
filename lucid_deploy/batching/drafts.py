"""How the rows of a batch draft: each on its own, within what one step should run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from lucid_deploy.generation.drafting import MOST_DRAFTS, Drafter
from lucid_deploy.generation.speculation import DraftCounts, drafts_with_prompt, propose_or_drop
from lucid_deploy.runtimes.session import Array, Cache, Session
from lucid_deploy.runtimes.several import STEP_TOKENS
from lucid_deploy.runtimes.take_back import pack, take_back


class DraftingRow(Protocol):
    """A running row, as far as drafts go.

    Attributes:
        ids: Tokens in its cache.
        next: The token to run next.
        left: Tokens that may still be chosen for it.
        drafter: Guesses its tokens; None: it decodes one at a time.
    """

    ids: list[int]
    next: int
    drafter: Drafter | None

    @property
    def left(self) -> int:
        """See the class."""


def propose(rows: Mapping[int, DraftingRow], context_limit: int | None, counts: DraftCounts) -> dict[int, list[int]]:
    """Return drafts of each row, none for many; a step runs as many columns as the longest needs.

    Args:
        rows: The running rows, by their requests' numbers.
        context_limit: Most tokens of a context. Rows of a growing cache end in the same column, so the longest counts.
        counts: Counts drafters that fail; their rows lose them, and decode one token at a time.
    """
    most = min(MOST_DRAFTS, STEP_TOKENS // len(rows) - 1)
    if context_limit is not None:
        most = min(most, context_limit - max(len(row.ids) for row in rows.values()) - 1)
    return {number: _propose(row, max(min(most, row.left - 1), 0), counts) for number, row in rows.items()}


def _propose(row: DraftingRow, most: int, counts: DraftCounts) -> list[int]:
    found = None if row.drafter is None else propose_or_drop(row.drafter, most, counts)
    if found is None:
        row.drafter = None
    return found or []


def propose_with_prompt(session: Session[Any], row: DraftingRow, prompt: int, counts: DraftCounts) -> list[int]:
    """Return drafts of a row that run with the end of its prompt, of so many tokens; none where that cannot be."""
    most = drafts_with_prompt(session, row.drafter, prompt, row.left)
    return _propose(row, most, counts) if most else []


def prefill(session: Session[Any], cache: Cache[Any], tokens: list[int], drafts: list[int]) -> Array:
    """Run a part of a prompt, and drafts behind its end; return the logits of its last token and of each draft.

    Returns:
        Float ``(1 + drafts, vocab)``.

    Raises:
        LucidError: As :meth:`Session.prefill`.
    """
    ids = np.array([[*tokens, *drafts]], dtype=np.int64)
    return session.prefill_last(ids, cache, 1 + len(drafts))[0] if drafts else session.prefill(ids, cache)[0]


def drop(session: Session[Any], cache: Cache[Any], kept: int, logits: Array) -> None:
    """Take out of a prompt's cache, without holes, the drafts that :func:`prefill` ran and that do not count.

    Args:
        session: Whose cache it is.
        cache: Changed in place.
        kept: How many count of the prompt's last token and the drafts, first ones first.
        logits: Of these.
    """
    if kept == len(logits):
        return
    take_back(session, cache, len(logits), np.array([kept]), bool(np.isfinite(logits[kept:]).all()))
    pack(session, cache)


def follow(
    row: DraftingRow, drafts: list[int], logits: Array, choose: Callable[[Array, int | None], bool], counts: DraftCounts
) -> int:
    """Choose a row's tokens for as long as its drafts are right.

    Args:
        row: Gets the tokens that count into ``ids``.
        drafts: What ran behind its next token.
        logits: Behind that, and behind each draft, ``(1 + drafts, vocab)``.
        choose: Chooses ``row.next`` from the logits of one place, and gets the draft for it; false where the row ends.
        counts: Are added to; tokens behind a stop string count as accepted.

    Returns:
        How many of the tokens that ran count.
    """
    right = 0
    while True:
        row.ids.append(row.next)
        draft = drafts[right] if right < len(drafts) else None
        if not choose(logits[right], draft) or row.next != draft:
            break
        right += 1
    counts.proposed += len(drafts)
    counts.accepted += right
    if drafts and row.drafter is not None:
        row.drafter.learn(len(drafts), right)
    return right + 1

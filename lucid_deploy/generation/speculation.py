"""Speculative decoding of one text: logits of tokens that were guessed, ready when the guess turns out right.

    1. The model runs the token that was chosen and the drafted ones behind it in one step, for the logits of all.
    2. The next token is chosen from the logits behind the first, as in plain decoding. If it is the first draft, the
       logits behind that are there already, and so on.
    3. When another token is chosen, the cache rows of the drafts not used are dropped, which is exact: Y never changes.

A token is chosen by the same code from the same distribution as without drafts, with penalties, constraints and the
random numbers of a seed. For a drafter that proposes x with certainty this is rejection sampling: x is accepted with
probability p(x), and else the token comes from p without x (arXiv 2211.17192 with q(x) = 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MOST_DRAFTS, Drafter
from lucid_deploy.runtimes.session import Array, Cache, Session
from lucid_deploy.runtimes.take_back import make_room, pack, take_back

MODES = ("off", "lookup", "draft")
_NEAR = {"float32": 1e-4, "float64": 1e-9}  # of the largest logit: well above what the order of sums changes …
_NEAR_HALF = 1e-2  # … and in half precision


@dataclass
class DraftCounts:
    """How far drafts were right.

    Attributes:
        proposed: Tokens that were drafted and run.
        accepted: Those of them that were chosen.
        near_ties: Greedy choices from logits of a verifying step whose two largest lie so close that another order of
            the same sums may choose the other.
    """

    proposed: int = 0
    accepted: int = 0
    near_ties: int = 0


def prepare_speculation(session: Session[Any]) -> None:
    """Let a session load what verifies drafts.

    Raises:
        LucidError: It cannot, with the reason.
    """
    obstacle = session.several_obstacle
    if obstacle is not None:
        raise LucidError(f"--speculate cannot be used: {obstacle}. Leave it out.")
    session.prepare_several()


def is_near_tie(logits: Array, dtype: str) -> bool:
    """Whether the two largest of some logits ``(vocab,)`` are as good as equal in a model of a type."""
    two = np.partition(logits, -2)[-2:]
    return bool(two[1] - two[0] <= _NEAR.get(dtype, _NEAR_HALF) * np.abs(two).max())


class Lookahead:
    """Decodes one text in place of :meth:`Session.decode`, a step at a time or several.

    Args:
        session: What runs the model.
        cache: One row that holds the text so far, without the token that comes next.
        drafter: Knows the text so far.
        greedy: Whether the likeliest token is taken, so that near ties are counted.

    Attributes:
        counts: See :class:`DraftCounts`.

    Raises:
        LucidError: The session cannot verify drafts.
    """

    def __init__(self, session: Session[Any], cache: Cache[Any], drafter: Drafter, greedy: bool = False) -> None:
        prepare_speculation(session)
        self._session, self._cache, self._drafter = session, cache, drafter
        self.counts = DraftCounts()
        self._greedy = greedy
        self._drafts: list[int] = []
        self._right = 0  # of these
        self._rows = np.zeros((1, 0), np.float32)  # logits behind the token that was run, and behind each draft

    def __call__(self, token: int, wanted: int) -> Array:
        """Return the logits behind a token, float ``(vocab,)``.

        Args:
            token: What was chosen.
            wanted: Most tokens that may follow it.

        Raises:
            LucidError: As :meth:`Session.decode`.
        """
        self._drafter.add([token])
        if self._right < len(self._drafts) and token == self._drafts[self._right]:
            self._right += 1
            self.counts.accepted += 1
            return self._row()
        self._settle()
        self._drafts = self._drafter.propose(min(MOST_DRAFTS, wanted - 1, self._room()))
        ids = np.array([[token, *self._drafts]], dtype=np.int64)
        make_room(self._session, self._cache, ids.shape[1])
        run = self._session.decode_several if self._drafts else self._session.decode
        self._rows = run(ids, self._cache)[0]
        self.counts.proposed += len(self._drafts)
        return self._row()

    def _row(self) -> Array:
        """Return the logits behind the last token that turned out right."""
        row: Array = self._rows[self._right]
        if self._greedy and self._drafts:
            self.counts.near_ties += is_near_tie(row, self._session.dtype)
        return row

    def finish(self) -> None:
        """Leave the cache as plain decoding would, without drafts and without holes."""
        self._settle()
        pack(self._session, self._cache)

    def _settle(self) -> None:
        """Drop the drafts that were not chosen, and let the drafter know."""
        drafts, right = len(self._drafts), self._right
        self._drafts, self._right = [], 0
        if not drafts:
            return
        self._drafter.learn(drafts, right)
        if right < drafts:
            take_back(self._session, self._cache, drafts + 1, np.array([right + 1]))

    def _room(self) -> int:
        """Return how many tokens the context has room for, beside the one to run."""
        limit = self._session.context_limit
        return MOST_DRAFTS if limit is None else max(limit - int(self._cache.mask.sum()) - 1, 0)

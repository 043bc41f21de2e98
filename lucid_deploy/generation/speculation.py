"""Speculative decoding of one text: one step runs guessed tokens too, and their logits are used if the guess is right.

    1. The model runs the token that was chosen and the drafted ones behind it in one step, for the logits of all.
    2. The next token is chosen from the logits behind the first, as in plain decoding. If it is the first draft, the
       logits behind that are there already, and so on.
    3. When another token is chosen, the cache rows of the drafts not used are dropped, which is exact: Y never changes.

A token is chosen by the same code from the same distribution as without drafts, with penalties, constraints and the
random numbers of a seed. For a drafter that proposes x with certainty this is rejection sampling: x is accepted with
probability p(x), and else the token comes from p without x (arXiv 2211.17192 with q(x) = 1).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MOST_DRAFTS, Drafter
from lucid_deploy.runtimes.cache_rows import make_room, pack, take_back
from lucid_deploy.runtimes.session import Array, Cache, Session

log = logging.getLogger("lucid_deploy.generation")
_NEAR = {"float32": 1e-4, "float64": 1e-9}  # of the largest logit: well above what the order of sums changes …
# … and in half precision: in one step the gap of two logits moved by up to 0.0012 in float16, and 0.0081 in bfloat16.
_NEAR |= {"float16": 1e-2, "bfloat16": 8 * 2.0**-8}
# Most that a cached number is off, of its row's largest.
_ROUNDING = {"int8": 0.5 / 127, "fp8": 16 / 448, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Of these. In one step the gap of two logits moved by up to 0.4 of one. Over an answer such steps add up: with int8,
# answers differed first at gaps of up to 5.3.
_REACH = {"int8": 8}
_REACH_ELSE = 2
# Inputs of products that are rounded: one that sums in another order put on the other side of a half moves by a whole
# step, and others after it. In one step the gap moved by up to 0.029 with int8 and 0.0097 with fp8; over an answer with
# int8, answers differed first at gaps of up to 0.058, see docs/speculation.md.
_INPUTS = {"int8": 8 / 127, "fp8": 32 / 448}


@dataclass
class DraftCounts:
    """Counts of drafted and accepted tokens.

    Attributes:
        proposed: Tokens that were drafted and run.
        accepted: Drafted tokens that became tokens of an answer.
        near_ties: Greedy choices, from an answer's first verifying step on, between two tokens so close that another
            order of the same sums, or another rounding of the cache or of inputs, may choose the other.
        failures: Drafters that were dropped because they failed; their answers went on without drafts.
    """

    proposed: int = 0
    accepted: int = 0
    near_ties: int = 0
    failures: int = 0


def prepare_speculation(session: Session[Any]) -> None:
    """Load the graph that verifies drafts."""
    reason = session.multi_token_unsupported_reason
    if reason is not None:
        raise LucidError(f"--speculate cannot be used: {reason}. Leave it out.")
    session.prepare_several()


def near_share(dtype: str, cache_dtype: str, rounded_inputs: str | None = None) -> float:
    """Return by how much a verifying step may change the difference of two logits, relative to the largest logit.

    Sums are in another order. Where the cache rounds, new tokens may see each other as they were before, and a number
    may fall to the other side of a half; so may inputs of products that are rounded to 8 bits.
    """
    shares = [_NEAR.get(dtype, _NEAR["bfloat16"]), _INPUTS.get(rounded_inputs or "", 0.0)]
    if cache_dtype != dtype:
        shares.append(_REACH.get(cache_dtype, _REACH_ELSE) * _ROUNDING.get(cache_dtype, 0.0))
    return max(shares)


def is_near_tie(adjusted: Array, logits: Array, share: float, slopes: Array | None = None) -> bool:
    """Whether the two best tokens are so close that rounding may decide between them.

    ``adjusted`` was made of the model's ``logits``, both ``(vocab,)``, and changes with them by ``slopes`` (None: by as
    much); ``share`` is what :func:`near_share` returns.
    """
    first = int(adjusted.argmax())
    near = share * max(logits.max(), -logits.min())
    if slopes is not None:
        near = near * np.maximum(slopes, slopes[first])
    return int(np.count_nonzero(adjusted[first] - adjusted <= near)) > 1  # the first is as near to itself


def propose_or_drop(drafter: Drafter, most: int, counts: DraftCounts) -> list[int] | None:
    """Return a drafter's proposal; None if it failed. The answer then goes on without drafts.

    All failures are counted; the first one is logged, with its traceback if it is a bug.
    """
    try:
        return drafter.propose(most)
    except Exception as error:
        if not counts.failures:
            trace = None if isinstance(error, LucidError) else error
            log.warning("Drafting failed, the answer goes on without: %s", error, exc_info=trace)
        counts.failures += 1
        return None


class Lookahead:
    """Decodes one text like :meth:`Session.decode`, with drafted tokens in the same step.

    The cache holds one row, the text so far without the token that comes next; the drafter knows that text.
    """

    def __init__(self, session: Session[Any], cache: Cache[Any], drafter: Drafter) -> None:
        prepare_speculation(session)
        self._session, self._cache = session, cache
        self._drafter: Drafter | None = drafter
        self.counts = DraftCounts()
        self._near = near_share(session.dtype, session.cache_dtype, session.rounded_inputs)
        self._drafts: list[int] = []
        self._right = 0  # of these
        self._verified = False  # whether a step has left rounding of its own in the cache
        self._rows = np.zeros((1, 0), np.float32)  # logits behind the token that was run, and behind each draft

    def __call__(self, token: int, wanted: int) -> Array:
        """Return the logits behind a token that was chosen, float ``(vocab,)``; at most ``wanted`` more may follow."""
        if self._drafter is not None:
            self._drafter.add([token])
        if self._right < len(self._drafts) and token == self._drafts[self._right]:
            self._right += 1
            return np.asarray(self._rows[self._right])
        self._settle()
        drafts = self._propose(min(MOST_DRAFTS, wanted - 1, self._room()))
        ids = np.array([[token, *drafts]], dtype=np.int64)
        make_room(self._session, self._cache, ids.shape[1])
        run = self._session.decode_several if drafts else self._session.decode
        self._rows = run(ids, self._cache)[0]
        self._expect(drafts)
        return np.asarray(self._rows[0])

    def _expect(self, drafts: list[int]) -> None:
        """Remember drafts that are in the cache now."""
        self._drafts = drafts
        self._verified |= bool(drafts)
        self.counts.proposed += len(drafts)

    def accept(self, token: int) -> None:
        """Count a chosen token as accepted if it was drafted."""
        self.counts.accepted += self._drafts[self._right : self._right + 1] == [token]

    def judge(self, adjusted: Array, slopes: Array | None = None) -> None:
        """Count a near tie in the logits that a token was greedily chosen from.

        Steps without drafts count as well once one had some: they read the rows of K and Y that it wrote.
        """
        if self._verified:
            self.counts.near_ties += is_near_tie(adjusted, self._rows[self._right], self._near, slopes)

    def _propose(self, most: int) -> list[int]:
        found = None if self._drafter is None else propose_or_drop(self._drafter, most, self.counts)
        if found is None:
            self._drafter = None
        return found or []

    def finish(self) -> None:
        """Leave the cache as plain decoding would leave it: without rejected drafts."""
        self._settle()
        pack(self._session, self._cache)

    def _settle(self) -> None:
        """Drop the rejected drafts from the cache, and tell the drafter."""
        drafts, right = len(self._drafts), self._right
        self._drafts, self._right = [], 0
        if not drafts:
            return
        if self._drafter is not None:
            self._drafter.learn(drafts, right)
        if right < drafts:
            is_sound = bool(np.isfinite(self._rows[right + 1 :]).all())
            take_back(self._session, self._cache, drafts + 1, np.array([right + 1]), is_sound)

    def _room(self) -> int:
        """Return how many drafts fit into the context beside the token to run."""
        limit = self._session.context_limit
        return MOST_DRAFTS if limit is None else max(limit - int(self._cache.mask.sum()) - 1, 0)

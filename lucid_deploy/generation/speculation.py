"""Choose an answer's tokens from logits, with or without drafts, until the answer ends.

Speculative decoding: a step also runs draft tokens, whose logits are used if the drafts are right.

    1. In one step, the model runs the token that was chosen last, followed by the drafts, and returns logits for all.
    2. The next token is chosen from the first of these logits, as in plain decoding. If it equals the first draft, the
       token after it is chosen from that draft's logits without another step, and so on.
    3. When another token is chosen, the unused drafts' cache rows are dropped. This is exact: other rows do not change.

A token is chosen by the same code from the same distribution as without drafts, with penalties, constraints and the
random numbers of a seed. For a drafter that proposes x with certainty this is rejection sampling: x is accepted with
probability p(x), otherwise a token is sampled from p without x (arXiv 2211.17192 with q(x) = 1).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MOST_DRAFTS, Drafter
from lucid_deploy.generation.guide import Guide
from lucid_deploy.generation.sampling import Sampler
from lucid_deploy.runtimes.session import STEP_TOKENS, Array, Session

log = logging.getLogger("lucid_deploy.generation")
# Two logits are near if their gap is at most this share of the largest absolute logit. Reordered sums move it far less.
_NEAR = {"float32": 1e-4, "float64": 1e-9}
# In half precision, one step changed the gap by up to 0.0012 (float16) or 0.0081 (bfloat16) of the largest logit.
_NEAR |= {"float16": 1e-2, "bfloat16": 8 * 2.0**-8}
# Largest rounding error of a cached value, as a share of the largest value in its row.
_ROUNDING = {"int8": 0.5 / 127, "fp8": 16 / 448, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Gaps of up to this many such errors count as near. One step changed the gap by up to 0.4 errors. Over an answer, steps
# add up: with int8, the first tokens that differed had gaps of up to 5.3 errors.
_REACH = {"int8": 8}
_REACH_ELSE = 2
# For matrix products with rounded inputs: another order of sums may round an input the other way, which changes it by a
# whole rounding step, and later inputs as well. One step changed the gap by up to 0.029 with int8 and 0.0097 with fp8.
# Over an answer with int8, the first tokens that differed had gaps of up to 0.058, see docs/speculation.md.
_INPUTS = {"int8": 8 / 127, "fp8": 32 / 448}


@dataclass
class DraftCounts:
    """Counts of drafted and accepted tokens.

    Attributes:
        proposed: Draft tokens that the model verified.
        accepted: Draft tokens that became tokens of an answer.
        near_ties: Greedy choices, from an answer's first verifying step on, between two tokens so close that another
            order of the same sums, or another rounding of the cache or of inputs, may choose the other.
        failures: Drafters that were dropped because they failed; their answers continued without drafts.
    """

    proposed: int = 0
    accepted: int = 0
    near_ties: int = 0
    failures: int = 0


def prepare_speculation(session: Session[Any]) -> None:
    """Load the graph that verifies drafts; raise a LucidError if the session has none."""
    reason = session.multi_token_unsupported_reason
    if reason is not None:
        raise LucidError(f"--speculate cannot be used: {reason}. Leave it out.")
    session.prepare_several()


def near_share(dtype: str, cache_dtype: str, rounded_inputs: str | None = None) -> float:
    """Return how much a verifying step may change the gap of two logits, as a share of the largest absolute logit.

    The step sums in another order. With a rounded cache, new tokens may attend to each other's unrounded values, and a
    value may be rounded the other way; so may inputs of matrix products in 8 bits (``rounded_inputs``).
    """
    shares = [_NEAR.get(dtype, _NEAR["bfloat16"]), _INPUTS.get(rounded_inputs or "", 0.0)]
    if cache_dtype != dtype:
        shares.append(_REACH.get(cache_dtype, _REACH_ELSE) * _ROUNDING.get(cache_dtype, 0.0))
    return max(shares)


def is_near_tie(adjusted: Array, logits: Array, share: float, repetition: float = 1.0) -> bool:
    """Return whether the two best tokens are so close that rounding may decide between them.

    ``adjusted`` was computed from the model's ``logits``, both ``(vocab,)``; the penalty ``repetition`` may have scaled
    the rounding error of either logit. ``share`` is what :func:`near_share` returns.
    """
    near = share * max(logits.max(), -logits.min()) * max(repetition, 1 / repetition)
    return int(np.count_nonzero(adjusted.max() - adjusted <= near)) > 1  # the count includes the best token itself


@dataclass
class Row:
    """An answer that is being generated.

    Attributes:
        ids: Tokens before ``next``, all of them in the row's cache.
        next: The newest token, which the next step runs; at first the prompt's last, which has already run.
        count: Number of new tokens so far.
        verified: Whether a step with drafts, for this or another row, has written to the row's cache.
        pending: Logits ``(vocab,)`` that wait for the guide's mask; None: no choice is pending.
        finish_reason: Set at the end: ``eos`` (also when the guide allows nothing more), ``length`` (max_new_tokens) or
            ``context`` (no room left).
    """

    choose: Sampler
    max_new_tokens: int
    stop_at_eos: bool = True
    guide: Guide | None = None
    drafter: Drafter | None = None
    ids: list[int] = field(default_factory=list)
    next: int = 0
    count: int = 0
    verified: bool = False
    pending: Array | None = None
    finish_reason: str = ""


class Choice(NamedTuple):
    """A new token, the model's logits ``(vocab,)`` for it, and whether it is an accepted draft."""

    token: int
    logits: Array
    drafted: bool


class Chooser:
    """Chooses the tokens of rows, with or without drafts, and counts drafts.

    Attributes:
        deadline: Time by :func:`time.monotonic` until which a choice may wait for the mask of a constraint; None: no
            limit.
    """

    def __init__(self, session: Session[Any], counts: DraftCounts) -> None:
        self._counts = counts
        self._ends, self._limit = session.config.eos_token_ids, session.context_limit
        self._near = near_share(session.dtype, session.cache_dtype, session.rounded_inputs)
        self.deadline: float | None = None

    def follow(self, row: Row, drafts: list[int], logits: Array) -> Iterator[Choice]:
        """Yield a row's next token and, while its drafts are right, those after them; each is chosen when requested.

        Accepted tokens are added to ``row.ids``. The caller has to drop the others from the cache, whether the row
        continues, ends, fails, or iteration stops before the drafts are used up.

        Args:
            drafts: The tokens that ran after ``row.next``.
            logits: Logits after ``row.next`` and after each draft, ``(1 + drafts, vocab)``.

        Raises:
            NoTokenLeft: See :meth:`Sampler.__call__` and :meth:`Guide.allowed`.
            CheckFailed: A logit is not finite.
        """
        row.verified |= bool(drafts)
        self._counts.proposed += len(drafts)
        for right, draft in enumerate([*drafts, None]):
            row.ids.append(row.next)
            choice = self._choose(row, logits[right], draft)
            if choice is not None:
                yield choice
            if row.finish_reason or row.pending is not None or row.next != draft:
                break
        if drafts and row.drafter is not None:
            row.drafter.learn(len(drafts), right)

    def _choose(self, row: Row, logits: Array, draft: int | None) -> Choice | None:
        """Return a row's next token; None if the answer ends here, or the mask of its guide is not ready in time."""
        row.pending, allowed = None, None
        if row.guide is not None:
            if self.deadline is not None and not row.guide.wait(max(0.0, self.deadline - time.monotonic())):
                row.pending = logits.copy()
                return None
            allowed = row.guide.allowed()
            if allowed is None:  # the text is complete
                row.finish_reason = "eos"
                return None
        choose = row.choose
        token = choose(logits, allowed)
        if row.verified and not choose.sampling.temperature:
            penalty = choose.sampling.repetition_penalty
            self._counts.near_ties += is_near_tie(choose.chosen_from, logits, self._near, penalty)
        if row.stop_at_eos and token in self._ends:
            row.finish_reason = "eos"
            return None
        row.next, row.count = token, row.count + 1
        if row.guide is not None:
            row.guide.advance(token)  # the next mask is computed while the model runs
        if row.drafter is not None:
            row.drafter.add([token])
        self._counts.accepted += token == draft
        if row.count == row.max_new_tokens:
            row.finish_reason = "eos" if row.guide is not None and row.guide.complete else "length"
        elif self._limit is not None and len(row.ids) >= self._limit:
            row.finish_reason = "context"
        return Choice(token, logits, token == draft)


def propose(rows: Mapping[int, Row], context_limit: int | None, counts: DraftCounts) -> dict[int, list[int]]:
    """Return drafts for each running row by its number; with drafts, a step runs at most :data:`STEP_TOKENS` tokens.

    Rows of a growing cache end in the same column, so the row with the most tokens limits the drafts of all.
    """
    most = min(MOST_DRAFTS, STEP_TOKENS // len(rows) - 1)
    if context_limit is not None:
        most = min(most, context_limit - max(len(row.ids) for row in rows.values()) - 1)
    return {number: _propose(row, most, counts) for number, row in rows.items()}


def _propose(row: Row, most: int, counts: DraftCounts) -> list[int]:
    """Return a row's drafts; if its drafter fails, drop it, so that the answer continues without drafts.

    All failures are counted; the first one is logged, with its traceback if it is a bug.
    """
    if row.drafter is None:
        return []
    try:
        return row.drafter.propose(max(min(most, row.max_new_tokens - row.count - 1), 0))
    except Exception as error:
        if not counts.failures:
            trace = None if isinstance(error, LucidError) else error
            log.warning("Drafting failed; the answer goes on without drafts: %s", error, exc_info=trace)
        counts.failures += 1
        row.drafter = None
        return []

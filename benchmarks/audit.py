"""Check answers that a server gave under load: each is computed again alone, token by token, up to near-ties.

As MLPerf's compliance tests do, accuracy is checked on what was answered *during* the load, not before or after it. The
served tokens are fed to a session one by one, so that what follows a near-tie is judged as well.

Two ways to compute the same logits differ by rounding. This difference is measured for each answer on one session: the
prompt runs in one piece, in pieces of :data:`CHUNK` tokens, and as a row of a batch, behind a column of padding. As in
``verify`` (:mod:`lucid_deploy.parity.gate`), the error of one correct computation is at most FACTOR times that of
another; and the computation that a served answer is compared with has an error, too. So a served log-probability may be
off by FACTOR + 1 times the measured difference or, if that is more, by twice the units in the last place of the largest
logit that ``verify`` always allows. A token that is less likely than another by no more than twice this bound is a
near-tie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT
from lucid_deploy.runtimes.session import Array, Session

CHUNK = 7  # tokens; divides no kernel's block size
REPEATS = 3  # this many answers to one prompt, sampled without a seed, must not all be the same


@dataclass(frozen=True)
class ServedAnswer:
    """One answer as a client received it."""

    prompt: tuple[int, ...]  # token ids
    tokens: tuple[int, ...]  # ids of the answer's tokens; an end-of-sequence token that ended it is not among them
    logprobs: tuple[float, ...]  # of each token, as the server reported it; empty: not reported
    reason: str  # stop or length
    max_new_tokens: int  # the request's limit
    greedy: bool = True  # whether the request had temperature 0
    stop_at_eos: bool = True  # whether an end-of-sequence token was to end the answer


@dataclass(frozen=True)
class Verdict:
    """The faults and near-ties of one answer."""

    faults: tuple[str, ...]  # what is wrong, a line each; none: the answer is right
    near_ties: int  # tokens that are not the most likely one, by less than rounding may change
    worst: float  # the largest difference of a log-probability, as a share of what is allowed


def audit(session: Session[Any], answer: ServedAnswer, prefill_chunk: int | None = 512) -> Verdict:
    """Check one answer by computing it again, alone.

    Args:
        session: A session of the same artifact that is not the server's.
        answer: What was served.
        prefill_chunk: Tokens of a prompt that the server runs at once. It must be the same here, since with a cache of
            another type than the model's, tokens of one call see each other before they are rounded.
    """
    faults = _length_faults(session, answer)
    logits = _logits(session, answer, prefill_chunk)
    others = [_logits(session, answer, CHUNK)]
    if _takes_two_rows(session, answer):
        others.append(_logits(session, answer, prefill_chunk, beside=True))
    allowed = _allowed(session.dtype, logits, others)
    found = _log_probabilities(logits)
    steps = np.arange(len(answer.tokens))
    own = found[steps, list(answer.tokens)]
    near_ties = 0
    if answer.greedy:
        best = found.argmax(axis=1)
        behind = found[steps, best[steps]] - own
        near_ties = int(((behind > 0) & (behind <= 2 * allowed)).sum())
        for step in np.flatnonzero(behind > 2 * allowed)[:1]:
            faults.append(
                f"token {step} is {answer.tokens[step]}; run alone, {best[step]} has a log-probability "
                f"{behind[step]:.3g} higher, and rounding explains at most {2 * allowed:.3g}"
            )
        faults += _end_faults(session, answer, found, 2 * allowed)
    differences = np.abs(np.asarray(answer.logprobs) - own) if answer.logprobs else np.zeros(1)
    worst = float(np.where(np.isnan(differences), np.inf, differences).max(initial=0.0)) / allowed
    if worst > 1:
        step = int(np.argmax(differences))
        faults.append(
            f"the log-probability of token {step} is {answer.logprobs[step]:.6g}; run alone, it is {own[step]:.6g}, "
            f"and rounding explains a difference of at most {allowed:.3g}"
        )
    return Verdict(tuple(faults), near_ties, worst)


def repeated(answers: Iterable[ServedAnswer]) -> list[str]:
    """Return a message for each prompt whose sampled answers are all the same, which means that one was cached.

    Args:
        answers: Answers that were asked for without a seed and with a temperature of 1.
    """
    texts: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    for answer in answers:
        texts[answer.prompt].append(answer.tokens)
    return [
        f"{len(tokens)} answers to one prompt of {len(prompt)} tokens, each drawn at random, are the same"
        for prompt, tokens in texts.items()
        if len(tokens) >= REPEATS and len(set(tokens)) == 1
    ]


def _takes_two_rows(session: Session[Any], answer: ServedAnswer) -> bool:
    """Whether an answer can be computed beside a row that is one token longer."""
    limit = session.context_limit
    return session.batch_limit != 1 and (limit is None or len(answer.prompt) < limit)


def _logits(session: Session[Any], answer: ServedAnswer, chunk: int | None, beside: bool = False) -> Array:
    """Return the logits before each token of an answer and after the last, float64 ``(tokens + 1, vocab)``.

    Args:
        session: What computes them.
        answer: The answer; near the end of the context there are fewer rows.
        chunk: Tokens of the prompt that run at once.
        beside: Run a second row with it, so that there is a column of padding before its prompt.
    """
    prompt, mask = np.array([answer.prompt], np.int64), None
    if beside:
        prompt = np.array([(0, *answer.prompt), (answer.prompt[0], *answer.prompt)], np.int64)
        mask = np.ones(prompt.shape, bool)
        mask[0, 0] = False
    cache = session.empty_cache(len(prompt))
    rows = [session.prefill(prompt, cache, mask, chunk)[0, -1]]
    limit = session.context_limit
    for token in answer.tokens:
        if limit is not None and cache.length >= limit:
            break
        rows.append(session.decode(np.full((len(prompt), 1), token, np.int64), cache)[0, -1])
    return np.asarray(rows, np.float64)


def _log_probabilities(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _allowed(dtype: str, logits: Array, others: Sequence[Array]) -> float:
    """Return what rounding may change in a log-probability, given the same logits computed in other ways."""
    found = _log_probabilities(logits)
    measured = max(float(np.abs(found[: len(other)] - _log_probabilities(other)).max(initial=0.0)) for other in others)
    largest = float(np.abs(logits).max(where=np.isfinite(logits), initial=0.0))
    return max((FACTOR + 1) * measured, 2 * FLOOR_UNITS * UNIT[dtype] * largest)


def _length_faults(session: Session[Any], answer: ServedAnswer) -> list[str]:
    count, limit = len(answer.tokens), session.context_limit
    full = limit is not None and len(answer.prompt) + count > limit
    faults = []
    if count > answer.max_new_tokens:
        faults.append(f"it has {count} tokens, and at most {answer.max_new_tokens} were requested")
    if answer.reason == "length" and count < answer.max_new_tokens and not full:
        faults.append(f"it ended with reason length after {count} tokens; {answer.max_new_tokens} were requested")
    if answer.logprobs and len(answer.logprobs) != count:
        faults.append(f"it has {count} tokens and {len(answer.logprobs)} log-probabilities")
    ends = set(session.config.eos_token_ids)
    if answer.stop_at_eos and ends.intersection(answer.tokens):
        faults.append("it goes on after an end-of-sequence token")
    return faults


def _end_faults(session: Session[Any], answer: ServedAnswer, found: Array, tie: float) -> list[str]:
    """Return a fault if a greedy answer stopped although the next token is not an end-of-sequence token."""
    ends: Sequence[int] = session.config.eos_token_ids
    if answer.reason != "stop" or not answer.stop_at_eos or not ends or len(found) <= len(answer.tokens):
        return []
    behind = float(found[-1].max() - found[-1][list(ends)].max())
    if behind <= tie:
        return []
    return [f"it stopped after {len(answer.tokens)} tokens; run alone, it goes on with {int(found[-1].argmax())}"]

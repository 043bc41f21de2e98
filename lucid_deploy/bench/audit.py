"""Answers that a server gave under load, computed again alone: token for token, near-ties told apart.

As MLPerf's compliance tests do, accuracy is checked on what was answered *during* the load, not before or after it. The
served tokens are fed to a session one by one, so that what follows a near-tie is judged as well.

Two ways to compute the same logits differ by rounding. How much is measured for each answer, on the same session:
with its prompt in one piece and in pieces of :data:`CHUNK` tokens. A served log-probability may be off by
:data:`FACTOR` times that, and a token that is less likely than another by no more than twice that is a near-tie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.runtimes.session import Array, Session

CHUNK = 7  # tokens; no divisor of what kernels work in
FACTOR = 8  # what one schedule's rounding differs from another's, between the answers of one model
_EPSILONS = 32  # of the largest logit, at least: prompts of few tokens have one schedule
_BITS = {"float32": 23, "float16": 10, "bfloat16": 7}
REPEATS = 3  # answers to one prompt, drawn without a seed, of which not all may be the same


@dataclass(frozen=True)
class ServedAnswer:
    """What a client saw of one answer.

    Attributes:
        prompt: Token ids.
        tokens: Ids of the answer's tokens; an end-of-sequence token that ended it is not among them.
        logprobs: Of each token, as the server reported it; empty: not reported.
        reason: ``stop`` or ``length``.
        max_new_tokens: That it was asked for.
        greedy: Whether it was asked for with temperature 0.
        stop_at_eos: Whether an end-of-sequence token was to end it.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: str
    max_new_tokens: int
    greedy: bool = True
    stop_at_eos: bool = True


@dataclass(frozen=True)
class Verdict:
    """What is found about one answer.

    Attributes:
        faults: What is wrong, a line each; none: the answer is right.
        near_ties: Tokens that are not the most likely one, by less than rounding may change.
        worst: The largest difference of a log-probability, as a share of what is allowed.
    """

    faults: tuple[str, ...]
    near_ties: int
    worst: float


def audit(session: Session[Any], answer: ServedAnswer, prefill_chunk: int | None = 512) -> Verdict:
    """Compute an answer again, alone.

    Args:
        session: The same artifact, opened by itself.
        answer: What was served.
        prefill_chunk: Tokens of a prompt that the server runs at once. With a cache of another type than the model's,
            tokens of one call see each other before they are rounded, so it must be the server's.
    """
    faults = _length_faults(session, answer)
    found, other = (_log_probabilities(session, answer, chunk) for chunk in (prefill_chunk, CHUNK))
    floor = _EPSILONS * 2.0 ** -_BITS[session.dtype] * float(np.abs(found).max(where=np.isfinite(found), initial=1.0))
    allowed = FACTOR * max(float(np.abs(found - other).max(initial=0.0)), floor)
    steps = np.arange(len(answer.tokens))
    own = found[steps, list(answer.tokens)]
    near_ties = 0
    if answer.greedy:
        best = found.argmax(axis=1)
        behind = found[steps, best[steps]] - own
        near_ties = int(((behind > 0) & (behind <= 2 * allowed)).sum())
        for step in np.flatnonzero(behind > 2 * allowed)[:1]:
            faults.append(
                f"token {step} is {answer.tokens[step]}; alone it is {best[step]}, more likely by {behind[step]:.3g} "
                f"in the logarithm, where rounding explains {2 * allowed:.3g}"
            )
        faults += _end_faults(session, answer, found, 2 * allowed)
    differences = np.abs(np.asarray(answer.logprobs) - own) if answer.logprobs else np.zeros(1)
    worst = float(np.where(np.isnan(differences), np.inf, differences).max(initial=0.0)) / allowed
    if worst > 1:
        step = int(np.argmax(differences))
        faults.append(
            f"the log-probability of token {step} is {answer.logprobs[step]:.6g}; alone it is {own[step]:.6g}, where "
            f"rounding explains a difference of {allowed:.3g}"
        )
    return Verdict(tuple(faults), near_ties, worst)


def repeated(answers: Iterable[ServedAnswer]) -> list[str]:
    """Say which prompts got one answer again and again although it is drawn at random: it was computed once and kept.

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


def _log_probabilities(session: Session[Any], answer: ServedAnswer, chunk: int | None) -> Array:
    """Return the logarithms of all tokens' probabilities before each token of an answer and behind it, float64."""
    cache = session.empty_cache(1)
    rows = [session.prefill(np.array([answer.prompt], np.int64), cache, chunk=chunk)[0, -1]]
    limit = session.context_limit
    for token in answer.tokens:
        if limit is not None and cache.length >= limit:
            break
        rows.append(session.decode(np.array([[token]], np.int64), cache)[0, -1])
    logits = np.asarray(rows, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _length_faults(session: Session[Any], answer: ServedAnswer) -> list[str]:
    count, limit = len(answer.tokens), session.context_limit
    full = limit is not None and len(answer.prompt) + count > limit
    faults = []
    if count > answer.max_new_tokens:
        faults.append(f"it has {count} tokens, of {answer.max_new_tokens} asked for")
    if answer.reason == "length" and count < answer.max_new_tokens and not full:
        faults.append(f"it ended for its length after {count} tokens, of {answer.max_new_tokens} asked for")
    if answer.logprobs and len(answer.logprobs) != count:
        faults.append(f"it has {count} tokens and {len(answer.logprobs)} log-probabilities")
    ends = set(session.config.eos_token_ids)
    if answer.stop_at_eos and ends.intersection(answer.tokens):
        faults.append("it goes on behind an end-of-sequence token")
    return faults


def _end_faults(session: Session[Any], answer: ServedAnswer, found: Array, tie: float) -> list[str]:
    """Return whether the token behind a greedy answer fits the reason for its end."""
    ends: Sequence[int] = session.config.eos_token_ids
    if answer.reason != "stop" or not answer.stop_at_eos or not ends or len(found) <= len(answer.tokens):
        return []
    behind = float(found[-1].max() - found[-1][list(ends)].max())
    if behind <= tie:
        return []
    return [f"it stopped after {len(answer.tokens)} tokens; alone it goes on with {int(found[-1].argmax())}"]

"""What a model generates greedily: drafted by one, decided by another, and compared as long as the tokens agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import cuts_exactly
from lucid_deploy.model.scenarios import Scenario
from lucid_deploy.parity.measure.compare import TensorRows, Tick, no_tick
from lucid_deploy.runtimes.session import Array, Session


def follow(session: Session[Any], prompt: Array, draft: Callable[[Array, int], Array], steps: int) -> Array:
    """Return what a session generates greedily, asking it for one token at a time only where a draft is wrong.

    Args:
        session: The model whose choice it is.
        prompt: Int64 ``(P,)``.
        draft: Returns a guess at how tokens go on, ``(tokens, n)`` to ``(n,)``; any will do, a good one is fast.
        steps: Tokens to generate.

    Returns:
        Int64 ``(steps,)``.
    """
    cache, chosen, fed = session.empty_cache(), np.zeros(0, dtype=np.int64), prompt
    while len(chosen) < steps:
        guess, before = draft(np.concatenate([prompt, chosen]), steps - len(chosen)), session.fork(cache)
        new = session.prefill_all(np.concatenate([fed, guess[:-1]])[None], cache)[0, len(fed) - 1 :]  # (count, vocab)
        wanted = new.argmax(axis=-1)
        right = int(np.argmin(np.append(wanted == guess, False)))  # the first wrong one, or all
        chosen = np.concatenate([chosen, wanted[: right + 1]])
        length = len(prompt) + len(chosen) - 1
        if cuts_exactly(session.layout, length, cache.length):
            session.truncate(cache, length)
        else:
            cache = before
            session.prefill(np.concatenate([prompt, chosen])[None, cache.length : length], cache)
        fed = chosen[-1:]
    return chosen


def generate(session: Session[Any], prompt: Array, steps: int, tick: Tick | None = None) -> Array:
    """Continue a prompt greedily; return the tokens, int64 ``(steps,)``. The last one is not fed back."""
    tick = tick or no_tick
    cache = session.empty_cache()
    logits = session.prefill(prompt[None], cache)
    tick()
    tokens = [int(logits[0, -1].argmax())]
    for _ in range(steps - 1):
        logits = session.decode(np.array([tokens[-1:]]), cache)
        tick()
        tokens.append(int(logits[0, -1].argmax()))
    return np.array(tokens, dtype=np.int64)


def free_run(forced: TensorRows, scenario: Scenario) -> TensorRows:
    """Return the logits of a session that generates freely, up to the first token that leaves the forced ones.

    Behind that token the contexts differ and nothing can be compared. The last row is the one that chose it, or, if the
    session never leaves, the one after the last forced token. Up to there a session that is forced and one that runs
    freely make the same calls with the same inputs, so that the forced run says what the free one would.

    Args:
        forced: The logits ``(1, S + 1, vocabulary)`` of the session in a batch of one, one-shot, the tokens forced.
        scenario: One whose forced tokens are the reference's own choice, ``(S,)``.
    """
    chosen = forced.values[0, :-1].argmax(axis=-1)  # (S,)
    leaves = np.append(chosen != scenario.forced, True)
    return replace(forced, values=forced.values[:, : int(leaves.argmax()) + 1])

"""Generation for many prompts at once, over any session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.shared import GroupBatch, TokenizedText, waves
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.runtimes.session import Session


def generate(
    session: Session[Any],
    groups: Sequence[Sequence[list[int]]],
    max_new_tokens: int,
    batch: int = 8,
    sampling: Sampling | None = None,
    stop: Callable[[list[int]], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    answered: Callable[[int, int, list[int]], None] | None = None,
) -> list[list[list[int]]]:
    """Go on with each prompt until an end-of-sequence token, ``stop`` or the number of tokens ends it.

    Args:
        session: What runs the model.
        groups: Prompts as token ids; what the prompts of a group begin with is run once.
        max_new_tokens: Most tokens to generate for each.
        batch: Most groups to run at once.
        sampling: How tokens are chosen; None: the most likely.
        stop: Called with the new tokens of a prompt; true ends it.
        progress: Called with (prompts done, prompts in all).
        answered: Called with a group's number, a prompt's number in it and its new tokens, as soon as they are known.

    Returns:
        The new tokens of each prompt, without the end-of-sequence token.

    Raises:
        LucidError: A prompt is empty, or has no room for the new tokens; none of these are asked for; or the sampling
            has penalties, biases or bad words.
        CheckFailed: The model gave logits that are not finite.
    """
    if max_new_tokens < 1:
        raise LucidError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if sampling is not None and sampling.adjusts:
        raise LucidError("Evaluation draws from the model's own logits: leave out penalties, biases and bad words.")
    tokenized = [[TokenizedText(prompt) for prompt in group] for group in groups]
    answers: list[list[list[int]]] = [[[] for _ in group] for group in groups]
    choose, done, total = Sampler(sampling or Sampling()), 0, sum(len(group) for group in groups)
    for wave in waves(session, tokenized, batch, room=max_new_tokens):
        rows = _generate(session, wave, max_new_tokens, choose, stop)
        for member, row in zip(wave.members, rows, strict=True):
            if member is not None:
                answers[member[0]][member[1]] = row
                done += 1
                if answered is not None:
                    answered(*member, row)
        if progress is not None:
            progress(done, total)
    return answers


def _generate(
    session: Session[Any],
    wave: GroupBatch,
    max_new_tokens: int,
    choose: Sampler,
    stop: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in wave.members]
    running = np.array([member is not None for member in wave.members])  # (B,)
    logits = session.prefill(wave.input_ids, wave.cache, wave.mask, chunk=session.prefill_chunk)  # (B, 1, vocab)
    while True:
        tokens = np.zeros((len(rows), 1), dtype=np.int64)
        for i in np.flatnonzero(running):
            token = choose(logits[i, -1])
            if token in session.config.eos_token_ids:
                running[i] = False
                continue
            tokens[i] = token
            rows[i].append(token)
            running[i] = len(rows[i]) < max_new_tokens and not (stop is not None and stop(rows[i]))
        if not running.any():
            return rows
        logits = session.decode(tokens, wave.cache, running[:, None])

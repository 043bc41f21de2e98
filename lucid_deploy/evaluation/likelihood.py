"""Log-likelihoods of continuations, for many contexts at once, over any session.

Shapes: B rows, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation.shared import GroupBatch, TokenizedText, waves
from lucid_deploy.runtimes.session import Array, Session

LOGITS = 1 << 26  # numbers at most in the logits of one run; a quarter of a GiB


def log_likelihoods(
    session: Session[Any],
    pairs: Sequence[tuple[list[int], list[int]]],
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
    answered: Callable[[int, tuple[float, bool]], None] | None = None,
) -> list[tuple[float, bool]]:
    """Return log p(continuation | context) of each pair, and whether greedy decoding would give the continuation.

    A context that several pairs have in common is run once. The sums are float64 over float32 logits.

    Args:
        session: What runs the model.
        pairs: Contexts and continuations as token ids, neither empty. Together they may be one token longer than the
            model's context, since the last token is not run.
        batch: Most contexts to run at once.
        progress: Called with (pairs done, pairs in all).
        answered: Called with a pair's number and its result, as soon as that is known.

    Raises:
        LucidError: An empty context or continuation, or a pair longer than the context.
        CheckFailed: The model gave logits that are not finite.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise LucidError("A log-likelihood needs a context and a continuation of at least one token each.")
        groups.setdefault(tuple(context), []).append(i)
    numbers = list(groups.values())
    tokenized = [[TokenizedText([*pairs[i][0], *pairs[i][1]][:-1], tail=len(pairs[i][1])) for i in g] for g in numbers]
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    done = 0
    for wave in waves(session, tokenized, batch):
        wanted = [[] if member is None else pairs[numbers[member[0]][member[1]]][1] for member in wave.members]
        for member, result in zip(wave.members, _scores(session, wave, wanted), strict=True):
            if member is not None:
                number = numbers[member[0]][member[1]]
                results[number] = result
                done += 1
                if answered is not None:
                    answered(number, result)
        if progress is not None:
            progress(done, len(pairs))
    return results


def _scores(session: Session[Any], wave: GroupBatch, wanted: list[list[int]]) -> list[tuple[float, bool]]:
    """Score the tokens that each row of a wave should go on with; they follow its last ``len(wanted)`` tokens."""
    width = wave.input_ids.shape[1]
    first = width - max(len(row) for row in wanted)  # no logits are wanted before this column
    if first == width - 1:  # one token for each row: logits of the last token do
        steps = [(slice(0, width), session.prefill(wave.input_ids, wave.cache, wave.mask, chunk=session.prefill_chunk))]
        columns = [slice(width - 1, width)]
    else:
        if first:
            session.prefill(wave.input_ids[:, :first], wave.cache, wave.mask[:, :first], chunk=session.prefill_chunk)
        size = max(1, LOGITS // (len(wanted) * session.config.vocab_size))
        columns = [slice(start, min(start + size, width)) for start in range(first, width, size)]
        steps = []
    sums, greedy = np.zeros(len(wanted)), np.ones(len(wanted), dtype=bool)
    for number, part in enumerate(columns):
        if steps:
            logits = steps[number][1]
        else:
            logits = session.prefill_all(wave.input_ids[:, part], wave.cache, wave.mask[:, part])
        for row, tokens in enumerate(wanted):
            _add(logits[row], tokens, width, part, row, sums, greedy)
    return [(float(total), bool(same)) for total, same in zip(sums, greedy, strict=True)]


def _add(logits: Array, tokens: list[int], width: int, part: slice, row: int, sums: Array, greedy: Array) -> None:
    """Add what one row's logits ``(columns, vocab)`` say about its tokens; token j follows column width − len + j."""
    start = width - len(tokens)
    columns = np.arange(max(part.start, start), part.stop)
    if not len(columns):
        return
    rows = logits[columns - part.start].astype(np.float64)  # (columns, vocab)
    if not np.isfinite(rows).all():
        raise CheckFailed(
            "The model gave logits that are not finite: its weights are damaged, or too large for its type."
        )
    targets = np.array(tokens)[columns - start]
    largest = rows.max(axis=1)
    chosen = rows[np.arange(len(columns)), targets]
    sums[row] += np.sum(chosen - largest - np.log(np.exp(rows - largest[:, None]).sum(axis=1)))
    greedy[row] &= bool((rows.argmax(axis=1) == targets).all())

"""Generate from many prompts, and score many continuations, in batches, with any session.

Prompts are given in groups; the common prefix of a group's prompts is run once. Shapes: B rows, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.runtimes.session import Array, Cache, Session

LOGITS = 1 << 26  # most elements in the logits of one run: 256 MiB in float32
Ids = list[int]


@dataclass
class Wave:
    """At most one prompt of each of B groups, ready to run after the common prefix of its group."""

    cache: Cache[Any]  # holds the common prefixes; not used by other waves
    input_ids: Array  # the remaining tokens, padded on the left, int64 (B, N)
    mask: Array  # False at padding, bool (B, N)
    members: list[tuple[int, int] | None]  # each row's group and its index in the group; None for a row of padding


def generate(
    session: Session[Any],
    groups: Sequence[Sequence[Ids]],
    max_new_tokens: int,
    batch: int = 8,
    sampling: Sampling | None = None,
    stop: Callable[[Ids], bool] | None = None,
) -> Iterator[tuple[int, int, Ids]]:
    """Yield each prompt's group, its index in the group and its new tokens, batch by batch.

    An answer ends before an end-of-sequence token, where ``stop`` is true, or after ``max_new_tokens``.

    Args:
        groups: Prompts as token ids, grouped by common prefix.
        max_new_tokens: Most tokens to generate for each prompt.
        batch: Most groups to run at once.
        sampling: How tokens are chosen; None: greedily.
        stop: Called with a prompt's new tokens; returns True to end the answer.
    """
    if max_new_tokens < 1:
        raise LucidError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    choose = Sampler(sampling or Sampling())
    assert not choose.sampling.adjusts, "penalties and bad words would count the tokens of all answers together"
    tails = [[1] * len(group) for group in groups]
    for wave in _waves(session, groups, tails, batch, room=max_new_tokens):
        rows: list[Ids] = [[] for _ in wave.members]
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
                break
            logits = session.decode(tokens, wave.cache, running[:, None])
        yield from ((*member, row) for member, row in zip(wave.members, rows, strict=True) if member is not None)


def log_likelihoods(
    session: Session[Any],
    pairs: Sequence[tuple[Ids, Ids]],
    batch: int = 8,
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Yield each pair's index, with log p(continuation | context) and whether greedy decoding gives the continuation.

    Pairs are (context, continuation) as token ids. A context that pairs share is run once, except its last token, which
    runs in each pair. Sums are float64. A pair may have one token more than the model's context: its last does not run.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise LucidError("A log-likelihood needs a context and a continuation of at least one token each.")
        same.setdefault(tuple(context), []).append(i)
    numbers = list(same.values())
    groups = [[[*pairs[i][0], *pairs[i][1]][:-1] for i in group] for group in numbers]
    tails = [[len(pairs[i][1]) for i in group] for group in numbers]
    for wave in _waves(session, groups, tails, batch):
        continuations = [[] if member is None else pairs[numbers[member[0]][member[1]]][1] for member in wave.members]
        for member, result in zip(wave.members, _scores(session, wave, continuations), strict=True):
            if member is not None:
                yield numbers[member[0]][member[1]], result


def _scores(session: Session[Any], wave: Wave, continuations: list[Ids]) -> list[tuple[float, bool]]:
    """Return each row's log-likelihood and whether its n tokens are greedy; column N − n + j predicts token j."""
    width = wave.input_ids.shape[1]
    first = width - max(len(row) for row in continuations)  # no logits are needed before this column
    sums, greedy = np.zeros(len(continuations)), np.ones(len(continuations), dtype=bool)
    for start, logits in _logits(session, wave, first):
        for row, tokens in enumerate(continuations):
            offset = width - len(tokens)
            columns = np.arange(max(start, offset), start + logits.shape[1])
            values = logits[row, columns - start].astype(np.float64)  # (columns, vocab)
            if not np.isfinite(values).all():
                raise CheckFailed(
                    "The model gave logits that are not finite: its weights are damaged, or too large for its type."
                )
            if not len(columns):
                continue
            targets = np.array(tokens)[columns - offset]
            peak = values.max(axis=1)
            chosen = values[np.arange(len(columns)), targets]
            sums[row] += np.sum(chosen - peak - np.log(np.exp(values - peak[:, None]).sum(axis=1)))
            greedy[row] &= bool((values.argmax(axis=1) == targets).all())
    return [(float(total), bool(same)) for total, same in zip(sums, greedy, strict=True)]


def _logits(session: Session[Any], wave: Wave, first: int) -> Iterator[tuple[int, Array]]:
    """Yield the logits of the columns from ``first`` on in pieces: the piece's first column and ``(B, n, vocab)``."""
    ids, mask, cache, chunk = wave.input_ids, wave.mask, wave.cache, session.prefill_chunk
    rows, width = ids.shape
    if first == width - 1:  # every graph gives the logits of the last token
        yield first, session.prefill(ids, cache, mask, chunk=chunk)
        return
    if first:
        session.prefill(ids[:, :first], cache, mask[:, :first], chunk=chunk)
    size = max(1, LOGITS // (rows * session.config.vocab_size))
    for start in range(first, width, size):
        part = slice(start, start + size)
        yield start, session.prefill_all(ids[:, part], cache, mask[:, part])


def _waves(
    session: Session[Any], groups: Sequence[Sequence[Ids]], tails: Sequence[Sequence[int]], batch: int, room: int = 0
) -> Iterator[Wave]:
    """Run each group's common prefix, and yield the remaining tokens in waves, with ``room`` for new tokens."""
    if batch < 1:
        raise LucidError(f"A batch must hold at least one row, not {batch}.")
    batch = min(batch, session.batch_limit or batch)
    for ids in (ids for group in groups for ids in group):
        if not ids:
            raise LucidError("A prompt is empty: it has no tokens.")
        session.check_length(len(ids) + room)
    shared = [_shared_length(group, tail) for group, tail in zip(groups, tails, strict=True)]
    longest = [max(map(len, group)) for group in groups]
    # Largest groups first, then those with the longest common prefix, so that running out of memory shows early.
    order = sorted(range(len(groups)), key=lambda g: (-len(groups[g]), -shared[g], -longest[g], g))
    while order:
        count = 1
        while count < min(batch, len(order)) and _fits(session, order[: count + 1], shared, longest, room):
            count += 1
        chosen, order = order[:count], order[count:]
        cache = session.empty_cache(count)
        if any(shared[g] for g in chosen):
            input_ids, mask = _padded([groups[g][0][: shared[g]] for g in chosen])
            session.prefill(input_ids, cache, mask, chunk=session.prefill_chunk)
        most = max(len(groups[g]) for g in chosen)
        for place in range(most):
            members = [(g, place) if place < len(groups[g]) else None for g in chosen]
            rests = [groups[g][place][shared[g] :] if place < len(groups[g]) else [] for g in chosen]
            own = session.fork(cache) if place < most - 1 else cache
            yield Wave(own, *_padded(rests), members)


def _shared_length(group: Sequence[Ids], tails: Sequence[int]) -> int:
    """Return the length of a group's common prefix, not counting the last ``tails`` tokens of each prompt."""
    if len(group) == 1 and tails[0] == 1:
        return 0  # a single prompt that only needs its last logits takes one run
    length = min(len(ids) - tail for ids, tail in zip(group, tails, strict=True))
    for ids in group[1:]:
        length = next((i for i in range(length) if ids[i] != group[0][i]), length)
    return length


def _fits(session: Session[Any], chosen: list[int], shared: list[int], longest: list[int], room: int) -> bool:
    """Return whether groups fit in one batch; padding counts towards the context."""
    limit = session.context_limit
    width = max(shared[g] for g in chosen) + max(longest[g] - shared[g] for g in chosen)
    return limit is None or width + room <= limit


def _padded(rows: list[Ids]) -> tuple[Array, Array]:
    """Return rows padded on the left: token ids int64 ``(B, N)``, and a mask that is False at padding."""
    width = max(map(len, rows))
    input_ids, mask = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = True
    return input_ids, mask

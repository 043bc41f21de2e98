"""Batches and shared beginnings change nothing: each prompt is answered, and scored, as if it ran alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation import batched
from lucid_deploy.evaluation.batched import generate, log_likelihoods
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Array

Exported = Callable[..., tuple[Path, Artifact]]
VOCAB = 23


def chaotic(history: list[int]) -> Array:
    """Logits that depend on every token of the history and on their order."""
    return np.random.default_rng([len(history), *history]).normal(size=VOCAB).astype(np.float32) * 3


def groups_of(seed: int, vocab: int) -> list[list[list[int]]]:
    """Groups of one to three prompts that begin alike, of many lengths; one group has a repeated prompt."""
    rng = np.random.default_rng(seed)
    groups = []
    for size in (1, 3, 2, 1, 3, 1, 2):
        start = rng.integers(3, vocab, rng.integers(1, 40)).tolist()
        groups.append([[*start, *rng.integers(3, vocab, rng.integers(1, 6)).tolist()] for _ in range(size)])
    return [*groups, [[7, 8, 9], [7, 8, 9]]]


def pairs_of(seed: int, vocab: int) -> list[tuple[list[int], list[int]]]:
    """Contexts, some of them shared, with continuations of one to seven tokens."""
    rng = np.random.default_rng(seed)
    pairs = []
    for continuations in (4, 1, 2, 1, 1):
        context = rng.integers(3, vocab, rng.integers(1, 30)).tolist()
        pairs += [(context, rng.integers(3, vocab, rng.integers(1, 8)).tolist()) for _ in range(continuations)]
    return pairs


def answers(session: Any, groups: list[list[list[int]]], *options: Any, **named: Any) -> list[list[list[int]]]:
    found = {(group, place): ids for group, place, ids in generate(session, groups, *options, **named)}
    return [[found.pop((g, p)) for p in range(len(group))] for g, group in enumerate(groups)]


def alone(session: Any, groups: list[list[list[int]]], new: int) -> list[list[list[int]]]:
    return [[list(Generation(session, prompt, new)) for prompt in group] for group in groups]


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_generation_in_batches(scripted: Any, batch: int) -> None:
    session, groups = scripted(chaotic, VOCAB), groups_of(0, VOCAB)
    found = answers(session, groups, 6, batch)
    assert found == alone(session, groups, 6)
    assert any(len(row) < 6 for group in found for row in group)  # some end early


def test_stop_ends_one_row_only(scripted: Any) -> None:
    session = scripted(lambda history: np.eye(VOCAB, dtype=np.float32)[5 + len(history) % 4], VOCAB)
    found = answers(session, [[[3] * n] for n in (1, 2, 3)], 6, batch=3, stop=lambda row: row[-1] == 8)
    assert found == [[[6, 7, 8]], [[7, 8]], [[8]]]


def test_sampling(scripted: Any) -> None:
    session = scripted(lambda _: np.arange(VOCAB, dtype=np.float32) * 0.01, VOCAB)
    found = answers(session, [[[3]], [[4]]], 40, sampling=Sampling(1.0, top_k=2, seed=1))
    assert {token for group in found for row in group for token in row} == {VOCAB - 1, VOCAB - 2}
    with pytest.raises(AssertionError, match="all answers together"):
        answers(session, [[[3]]], 1, sampling=Sampling(presence_penalty=1.0))


def test_padding_never_exceeds_the_context(scripted: Any) -> None:
    """A long shared beginning beside a long end would, side by side."""
    session, long = scripted(chaotic, VOCAB, context=64), np.random.default_rng(0).integers(3, VOCAB, 50).tolist()
    groups = [[[*long, 5], [*long, 6]], [[5, *long], [6, *long]]]
    assert answers(session, groups, 4, batch=8) == alone(session, groups, 4)


def test_a_batch_stays_within_what_the_session_takes(scripted: Any) -> None:
    rows = []

    class Narrow(scripted):  # type: ignore[misc]
        batch_limit = 2

        def empty_cache(self, batch: int = 1) -> Any:
            rows.append(batch)
            return super().empty_cache(batch)

    answers(Narrow(chaotic, VOCAB), groups_of(0, VOCAB), 2, batch=8)
    assert max(rows) == 2


@pytest.mark.parametrize("all_logits", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 50])
def test_likelihoods_are_sums_over_single_steps(
    scripted: Any, batch: int, all_logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With continuations whose first, last, or every token is the most likely one; logits come in pieces of two."""
    monkeypatch.setattr(batched, "LOGITS", 2 * VOCAB)
    session, pairs = scripted(chaotic, VOCAB, all_logits=all_logits), pairs_of(3, VOCAB)
    first = int(np.argmax(chaotic([5])))
    second, other = (int(chaotic([5, start]).argmax()) for start in (first, 4))
    greedy_pairs = [([5], [first, second]), ([5], [first, (second + 1) % VOCAB]), ([5], [4, other]), ([5], [first])]
    assert first != 4
    pairs += greedy_pairs
    found = [result for _, result in sorted(log_likelihoods(session, pairs, batch))]
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        expected, same = 0.0, True
        for i, token in enumerate(continuation):
            logits = chaotic([*context, *continuation[:i]]).astype(np.float64)
            expected += logits[token] - np.log(np.exp(logits).sum())
            same &= int(logits.argmax()) == token
        assert value == pytest.approx(expected, abs=1e-9) and greedy == same
    assert [greedy for _, greedy in found[-4:]] == [True, False, False, True]


@pytest.mark.parametrize(("logits", "cache"), [("all", "growing"), ("last", "growing")])
def test_likelihoods_are_those_of_pytorch(exported: Exported, logits: str, cache: str) -> None:
    checkpoint, artifact = exported(logits=logits, cache=cache)
    model, session, pairs = load_model(Checkpoint(checkpoint), torch.float64), open_session(artifact), pairs_of(5, 97)
    found = [result for _, result in sorted(log_likelihoods(session, pairs, batch=3))]
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        out, _ = model(torch.tensor([[*context, *continuation]]))
        rows = out[0, len(context) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(continuation)
        assert value == pytest.approx(rows.gather(1, wanted[:, None]).sum().item(), abs=2e-4)
        assert greedy == bool((rows.argmax(1) == wanted).all())


def test_what_cannot_run_is_refused(scripted: Any) -> None:
    session = scripted(chaotic, VOCAB, context=64)
    for prompt, new, message in (([], 1, "empty"), ([3] * 60, 5, "max_position_embeddings"), ([3], 0, "at least 1")):
        with pytest.raises(LucidError, match=message):
            answers(session, [[[3]], [prompt]], new)
    with pytest.raises(LucidError, match="at least one row, not 0"):
        answers(session, [[[3]]], 1, batch=0)
    for pair in (([], [3]), ([3], [])):
        with pytest.raises(LucidError, match="at least one token each"):
            list(log_likelihoods(session, [pair]))
    for run in (lambda s: list(log_likelihoods(s, [([3], [4, 5])])), lambda s: answers(s, [[[3]]], 2)):
        with pytest.raises(CheckFailed, match="not finite"):
            run(scripted(lambda _: np.full(VOCAB, np.nan, dtype=np.float32), VOCAB))

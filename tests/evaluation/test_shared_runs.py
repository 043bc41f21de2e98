"""Batches, padding and shared beginnings change nothing: each prompt is answered as if it ran alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation import likelihood
from lucid_deploy.evaluation.greedy import generate
from lucid_deploy.evaluation.likelihood import log_likelihoods
from lucid_deploy.evaluation.shared import Tokenized, waves
from lucid_deploy.generation.generate import Generation, Sampling
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Array

Exported = Callable[..., tuple[Path, Artifact]]
VOCAB = 23


def chaotic(history: list[int]) -> Array:
    """Logits that depend on every token of the history and on their order."""
    return np.random.default_rng([len(history), *history]).normal(size=VOCAB).astype(np.float32) * 3


def groups_of(seed: int, vocab: int, longest: int = 40) -> list[list[list[int]]]:
    """Groups of one to three prompts that begin alike, of many lengths; one group has a repeated prompt."""
    rng = np.random.default_rng(seed)
    groups = []
    for size in (1, 3, 2, 1, 3, 1, 2):
        start = rng.integers(3, vocab, rng.integers(1, longest)).tolist()
        groups.append([[*start, *rng.integers(3, vocab, rng.integers(1, 6)).tolist()] for _ in range(size)])
    groups.append([[7, 8, 9], [7, 8, 9]])
    return groups


def pairs_of(seed: int, vocab: int) -> list[tuple[list[int], list[int]]]:
    """Contexts, some of them shared, with continuations of one to seven tokens."""
    rng = np.random.default_rng(seed)
    pairs = []
    for continuations in (4, 1, 2, 1, 1):
        context = rng.integers(3, vocab, rng.integers(1, 30)).tolist()
        pairs += [(context, rng.integers(3, vocab, rng.integers(1, 8)).tolist()) for _ in range(continuations)]
    return pairs


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_generation_is_that_of_one_prompt_after_the_other(scripted: Any, batch: int) -> None:
    session, groups = scripted(chaotic, VOCAB), groups_of(0, VOCAB)
    found = generate(session, groups, 6, batch)
    alone = [[list(Generation(session, prompt, 6)) for prompt in group] for group in groups]
    assert found == alone
    assert any(len(row) < 6 for group in found for row in group)  # some end early


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_generation_with_an_artifact(exported: Exported, cache: str) -> None:
    session, groups = open_session(exported(cache=cache)[1]), groups_of(1, 97)
    found = generate(session, groups, 5, batch=4)
    assert found == [[list(Generation(session, prompt, 5)) for prompt in group] for group in groups]


def test_a_stop_ends_one_row_and_no_other(scripted: Any) -> None:
    session = scripted(lambda history: np.eye(VOCAB, dtype=np.float32)[5 + len(history) % 4], VOCAB)
    groups = [[[3] * n] for n in (1, 2, 3)]
    found = generate(session, groups, 6, batch=3, stop=lambda row: row[-1] == 8)
    assert found == [[[6, 7, 8]], [[7, 8]], [[8]]]


def test_sampling_draws_among_the_allowed(scripted: Any) -> None:
    session = scripted(lambda _: np.arange(VOCAB, dtype=np.float32) * 0.01, VOCAB)
    found = generate(session, [[[3]], [[4]]], 40, sampling=Sampling(1.0, top_k=2, seed=1))
    assert {token for group in found for row in group for token in row} == {VOCAB - 1, VOCAB - 2}


def test_progress_reaches_the_end(scripted: Any) -> None:
    seen: list[tuple[int, int]] = []
    generate(scripted(chaotic, VOCAB), groups_of(0, VOCAB), 2, 3, progress=lambda *now: seen.append(now))
    assert seen[-1] == (15, 15) and seen == sorted(seen)


@pytest.mark.parametrize("all_logits", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 50])
def test_likelihoods_are_sums_over_single_steps(scripted: Any, batch: int, all_logits: bool) -> None:
    session, pairs = scripted(chaotic, VOCAB, all_logits=all_logits), pairs_of(3, VOCAB)
    pairs.append(([5], [int(np.argmax(chaotic([5]))), int(np.argmax(chaotic([5, int(np.argmax(chaotic([5])))])))]))
    for (context, continuation), (value, greedy) in zip(pairs, log_likelihoods(session, pairs, batch), strict=True):
        expected, same = 0.0, True
        for i, token in enumerate(continuation):
            logits = chaotic([*context, *continuation[:i]]).astype(np.float64)
            expected += logits[token] - np.log(np.exp(logits).sum())
            same &= int(logits.argmax()) == token
        assert value == pytest.approx(expected, abs=1e-9)
        assert greedy == same
    assert log_likelihoods(session, pairs, batch)[-1][1]


def test_logits_are_taken_in_parts_where_they_are_many(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, pairs = scripted(chaotic, VOCAB), pairs_of(4, VOCAB)
    whole = log_likelihoods(session, pairs)
    monkeypatch.setattr(likelihood, "LOGITS", 2 * VOCAB)
    assert log_likelihoods(session, pairs) == [(pytest.approx(value), greedy) for value, greedy in whole]


@pytest.mark.parametrize(("logits", "cache"), [("all", "growing"), ("all", "static"), ("last", "growing")])
def test_likelihoods_are_pytorchs(exported: Exported, logits: str, cache: str) -> None:
    checkpoint, artifact = exported(logits=logits, cache=cache)
    model, session, pairs = load_model(Checkpoint(checkpoint), torch.float64), open_session(artifact), pairs_of(5, 97)
    assert session.gives_all_logits == (logits == "all")
    found = log_likelihoods(session, pairs, batch=3)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        out, _ = model(torch.tensor([[*context, *continuation]]))
        rows = out[0, len(context) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(continuation)
        assert value == pytest.approx(rows.gather(1, wanted[:, None]).sum().item(), abs=2e-4)
        assert greedy == bool((rows.argmax(1) == wanted).all())


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_all_logits_are_those_of_each_token(exported: Exported, runtime: str) -> None:
    """After a cached past, with padding: as decoding token by token gives them."""
    session = open_session(exported(logits="all")[1], runtime)
    rng = np.random.default_rng(0)
    past, new = rng.integers(3, 97, (2, 5)), rng.integers(3, 97, (2, 6))
    mask = np.array([[False, False, True, True, True, True], [True] * 6])
    cache = session.empty_cache(2)
    session.prefill(past, cache)
    one, other = session.fork(cache), session.fork(cache)
    found = session.prefill_all(new, one, mask)
    steps = [session.decode(new[:, i : i + 1], other, mask[:, i : i + 1]) for i in range(6)]
    assert found.shape == (2, 6, 97)
    np.testing.assert_allclose(found[mask], np.concatenate(steps, axis=1)[mask], atol=1e-4)
    assert one.length == other.length == 11
    with pytest.raises(LucidError, match="mask"):
        session.prefill_all(new, one, mask[:, :3])


def test_padding_never_exceeds_the_context(scripted: Any) -> None:
    """A long beginning beside a long end would, side by side."""
    session = scripted(chaotic, VOCAB, context=64)
    rng = np.random.default_rng(0)
    long = rng.integers(3, VOCAB, 50).tolist()
    groups = [[[*long, 5], [*long, 6]], [[5, *long], [6, *long]]]
    assert generate(session, groups, 4, batch=8) == [[generate(session, [[p]], 4)[0][0] for p in g] for g in groups]
    widths = [wave.cache.length + wave.input_ids.shape[1] for wave in waves(session, _tokenized(groups), 8, 4)]
    assert max(widths) + 4 <= 64


def test_a_batch_stays_within_what_the_session_takes(scripted: Any) -> None:
    class Narrow(scripted):  # type: ignore[misc]
        batch_limit = 2

    sizes = [len(wave.members) for wave in waves(Narrow(chaotic, VOCAB), _tokenized(groups_of(0, VOCAB)), 8)]
    assert max(sizes) == 2


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [([], 1, "empty"), ([3] * 60, 5, "max_position_embeddings")],
)
def test_prompts_that_cannot_run_are_refused(scripted: Any, prompt: list[int], new: int, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        generate(scripted(chaotic, VOCAB, context=64), [[[3]], [prompt]], new)


@pytest.mark.parametrize("pair", [([], [3]), ([3], [])])
def test_likelihoods_need_tokens(scripted: Any, pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(LucidError, match="at least one token each"):
        log_likelihoods(scripted(chaotic, VOCAB), [pair])


def test_likelihoods_that_are_not_finite_fail(scripted: Any) -> None:
    session = scripted(lambda _: np.full(VOCAB, np.inf, dtype=np.float32), VOCAB)
    with pytest.raises(CheckFailed, match="not finite"):
        log_likelihoods(session, [([3], [4, 5])])


def _tokenized(groups: list[list[list[int]]]) -> list[list[Tokenized]]:
    return [[Tokenized(prompt) for prompt in group] for group in groups]

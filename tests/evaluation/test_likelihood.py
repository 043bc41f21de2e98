"""Log-likelihoods of continuations are PyTorch's, whatever runs side by side."""

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
from lucid_deploy.evaluation.likelihood import log_likelihoods
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from tests.evaluation.chaos import VOCAB, chaotic, pairs_of

Exported = Callable[..., tuple[Path, Artifact]]


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


@pytest.mark.parametrize("pair", [([], [3]), ([3], [])])
def test_likelihoods_need_tokens(scripted: Any, pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(LucidError, match="at least one token each"):
        log_likelihoods(scripted(chaotic, VOCAB), [pair])


def test_likelihoods_that_are_not_finite_fail(scripted: Any) -> None:
    session = scripted(lambda _: np.full(VOCAB, np.inf, dtype=np.float32), VOCAB)
    with pytest.raises(CheckFailed, match="not finite"):
        log_likelihoods(session, [([3], [4, 5])])

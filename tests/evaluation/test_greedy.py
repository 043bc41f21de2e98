"""Batches and shared beginnings change nothing: each prompt is answered as if it ran alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.greedy import generate
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import open_session
from tests.evaluation.chaos import VOCAB, chaotic, groups_of

Exported = Callable[..., tuple[Path, Artifact]]


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


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [([], 1, "empty"), ([3] * 60, 5, "max_position_embeddings")],
)
def test_prompts_that_cannot_run_are_refused(scripted: Any, prompt: list[int], new: int, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        generate(scripted(chaotic, VOCAB, context=64), [[[3]], [prompt]], new)

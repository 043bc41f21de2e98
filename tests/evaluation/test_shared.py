"""Waves of sequences stay within the context and the rows that a session takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_deploy.evaluation.greedy import generate
from lucid_deploy.evaluation.shared import waves
from tests.evaluation.chaos import VOCAB, chaotic, groups_of, tokenized


def test_padding_never_exceeds_the_context(scripted: Any) -> None:
    """A long beginning beside a long end would, side by side."""
    session = scripted(chaotic, VOCAB, context=64)
    rng = np.random.default_rng(0)
    long = rng.integers(3, VOCAB, 50).tolist()
    groups = [[[*long, 5], [*long, 6]], [[5, *long], [6, *long]]]
    assert generate(session, groups, 4, batch=8) == [[generate(session, [[p]], 4)[0][0] for p in g] for g in groups]
    widths = [wave.cache.length + wave.input_ids.shape[1] for wave in waves(session, tokenized(groups), 8, 4)]
    assert max(widths) + 4 <= 64


def test_a_batch_stays_within_what_the_session_takes(scripted: Any) -> None:
    class Narrow(scripted):  # type: ignore[misc]
        batch_limit = 2

    sizes = [len(wave.members) for wave in waves(Narrow(chaotic, VOCAB), tokenized(groups_of(0, VOCAB)), 8)]
    assert max(sizes) == 2

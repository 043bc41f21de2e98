"""A generation follows its sampling, and long prompts run in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session

PROMPT = [5, 9, 5, 9, 40]


@pytest.fixture(scope="module")
def session(exported: Callable[..., tuple[Path, Artifact]]) -> Session:
    return open_session(exported()[1])


def generated(session: Session, count: int = 12, **sampling: object) -> list[int]:
    return list(Generation(session, PROMPT, count, Sampling(**sampling), stop_at_eos=False))  # type: ignore[arg-type]


def test_penalties_biases_and_bad_words_reach_the_tokens(session: Session) -> None:
    plain = generated(session)
    assert generated(session, logit_bias=((plain[0], -100.0),))[0] != plain[0]
    assert set(generated(session, logit_bias=((33, 100.0),))) == {33}
    assert plain[0] not in generated(session, bad_words=((plain[0],),))
    assert generated(session, bad_words=(tuple(plain[:2]),))[:2] != plain[:2]
    once = generated(session, repetition_penalty=100.0)  # leaves little of a logit that is positive
    assert len(set(once)) == len(once) and not set(once) & set(PROMPT)


@pytest.mark.parametrize(
    ("ids", "chunk", "pieces"),
    [
        (2500, None, [1024, 2048, 2500]),
        (1024, None, [1024]),
        (2500, 2000, [2000, 2500]),
    ],
)
def test_long_prompts_run_in_pieces(
    ids: int, chunk: int | None, pieces: list[int], exported: Callable[..., tuple[Path, Artifact]]
) -> None:
    """A prompt of any length takes a bounded amount of memory, even if no chunk is set."""
    session, seen = open_session(exported()[1], allow_extrapolation=True), list[tuple[int, int]]()
    generation = Generation(session, [3] * ids, 1, prefill_chunk=chunk)
    generation.progress = lambda *done: seen.append(done)
    list(generation)
    assert seen == [(piece, ids) for piece in pieces]

"""A conversation gives the same answers as each whole text run alone, but runs new tokens only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.generation.generate import Conversation, Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED, write_checkpoint

FIRST = [5, 17, 80, 5, 17, 33, 2, 9, 9, 41, 60, 5]
KINDS = {"rows": {}, "rings": MIXED}


@pytest.fixture(scope="module", params=KINDS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session[Any]]:
    """Sessions in float64; the second model has a layer that cannot go back once its ring is full."""
    path = write_checkpoint(tmp_path_factory.mktemp("conversation") / "c", **KINDS[request.param])
    yield TorchSession(load_model(path, torch.float64))


def alone(session: Session[Any], prompt: list[int], count: int, **sampling: Any) -> list[int]:
    return list(Generation(session, prompt, count, Sampling(**sampling), stop_at_eos=False))


def test_each_answer_is_that_of_the_whole_text(session: Session[Any]) -> None:
    made = Conversation(session, 8, Sampling(), prefill_chunk=5, stop_at_eos=False)
    text = list(FIRST)
    for more in ([7, 5], [17, 33, 17], [4]):
        answer = list(made.answer(text))
        assert answer == alone(session, text, 8)
        assert made.reused + made.computed == len(text)
        text += [*answer, *more]
    assert made.computed == 1 + 3  # the last token of an answer is not run before the next text
    assert made.finish_reason == "length"


def test_a_text_that_differs_reuses_the_cache_up_to_the_difference(session: Session[Any]) -> None:
    made = Conversation(session, 8, Sampling(), stop_at_eos=False)
    answer = list(made.answer(FIRST))
    rows_only = all(tensor.sort == "rows" for layer in session.layout for tensor in layer)
    other = [*FIRST, *answer[:3], 50, 51]  # as a template may write an answer in another way
    assert list(made.answer(other)) == alone(session, other, 8)
    assert made.reused == (len(FIRST) + 3 if rows_only else len(FIRST))  # with a full ring, back to the last prompt
    changed = [1, 2, *FIRST]
    assert list(made.answer(changed)) == alone(session, changed, 8)
    assert made.reused == 0
    again = [*changed, 3][: len(changed) - 1]  # a beginning of what was run
    assert list(made.answer(again)) == alone(session, again, 8)


def test_after_a_stopped_answer_the_cache_is_reused(session: Session[Any]) -> None:
    made = Conversation(session, 100, Sampling(), stop_at_eos=False)
    with closing(made.answer(FIRST)) as tokens:  # type: ignore[type-var]
        begun = list(islice(tokens, 3))
    assert made.finish_reason == ""
    text = [*FIRST, *begun, 8]
    assert list(islice(made.answer(text), 5)) == alone(session, text, 5)
    assert made.computed == 2


@pytest.mark.parametrize("session", ["rows"], indirect=True)
@pytest.mark.parametrize("stop_after", [1, 2, 4, 6])
def test_an_answer_stopped_among_right_drafts_keeps_only_taken_tokens(session: Session[Any], stop_after: int) -> None:
    """Right drafts that the caller did not take are no part of the conversation."""
    answer = alone(session, FIRST, 12)

    class Right(LookupDrafter):
        def propose(self, most: int) -> list[int]:
            return answer[self._count - len(FIRST) :][: min(most, 4)]

        def learn(self, proposed: int, accepted: int) -> None:
            pass

    made = Conversation(session, 100, Sampling(), stop_at_eos=False, drafters=Right)
    with closing(made.answer(FIRST)) as tokens:  # type: ignore[type-var]
        begun = list(islice(tokens, stop_after))
    assert begun == answer[:stop_after] and made.drafts is not None and made.drafts.proposed >= (stop_after > 1)
    text = [*FIRST, *begun, 8]
    assert list(islice(made.answer(text), 5)) == alone(session, text, 5)
    assert made.computed == 2


def test_an_error_leaves_the_conversation_usable(session: Session[Any]) -> None:
    made = Conversation(session, 4, Sampling(), stop_at_eos=False)
    answer = list(made.answer(FIRST))
    with pytest.raises(LucidError, match="The context would be"):
        list(made.answer([*FIRST, *answer, *[5] * 600]))
    with pytest.raises(LucidError, match="outside the vocabulary"):
        list(made.answer([*FIRST, *answer, 97]))
    text = [*FIRST, *answer, 6]
    assert list(made.answer(text)) == alone(session, text, 4)


def test_seeds_count_up_and_restart_after_a_reset(session: Session[Any]) -> None:
    made = Conversation(session, 6, Sampling(temperature=2.0, seed=7), stop_at_eos=False)
    first, second = list(made.answer(FIRST)), list(made.answer(FIRST))
    assert first == alone(session, FIRST, 6, temperature=2.0, seed=7)
    assert second == alone(session, FIRST, 6, temperature=2.0, seed=8)
    made.reset()
    assert (list(made.answer(FIRST)), made.reused) == (first, 0)


def test_a_prompt_aborted_halfway_changes_no_later_answer(session: Session[Any]) -> None:
    class GivenUp(Exception):
        pass

    def give_up(done: int, total: int) -> None:
        raise GivenUp

    made = Conversation(session, 8, Sampling(), prefill_chunk=2, stop_at_eos=False)
    answer = list(made.answer(FIRST))
    for change in (50, 51):  # cut back to the difference, or to the end of the last prompt
        with pytest.raises(GivenUp):
            list(made.answer([*FIRST, *answer[:2], change, 7, 7, 7], give_up))
    text = [*FIRST, *answer[:3], 52]
    assert list(made.answer(text)) == alone(session, text, 8)


def test_each_answer_has_a_guide_of_its_own(session: Session[Any]) -> None:
    class Once:
        """Allows the tokens 9 and 41, in this order, and then nothing."""

        def __init__(self) -> None:
            self.left = [41, 9]
            opened.append(self)

        def allowed(self) -> Any:
            return np.arange(97) == self.left[-1] if self.left else None

        def advance(self, token: int) -> None:
            assert token == self.left.pop()

    opened: list[Once] = []
    made = Conversation(session, 8, Sampling(), stop_at_eos=False, guides=Once)  # type: ignore[arg-type]
    assert [list(made.answer(FIRST)), list(made.answer([*FIRST, 9, 41, 3]))] == [[9, 41], [9, 41]]
    assert (len(opened), made.finish_reason, made.computed) == (2, "eos", 1)  # all but the last token was cached

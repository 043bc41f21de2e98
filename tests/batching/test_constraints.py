"""Constrained and free requests share a batch, each as if it were alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.batching.answers import AnswerFile
from lucid_deploy.batching.offline import answer_prompts
from lucid_deploy.batching.prompts import Prompt
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint, from_choices, from_json_schema, from_regex
from lucid_deploy.generation.drafting import Drafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.guide import Guide, GuideFactory
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.speculation import DraftCounts
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from tests.batching.draining import drain

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
PROMPT = [40, 41, 40, 41, 70]
Setup = tuple[Session, TextTokenizer, GuideFactory]


@pytest.fixture(scope="module", params=["growing", "static"])
def setup(request: pytest.FixtureRequest, with_byte_level_tokenizer: Callable[..., tuple[Path, Artifact]]) -> Setup:
    _, artifact = with_byte_level_tokenizer(cache=request.param)
    session, tokenizer = open_session(artifact), TextTokenizer(artifact.directory)
    return session, tokenizer, GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)


def alone(setup: Setup, request: Request) -> tuple[list[int], str]:
    session, _, guides = setup
    guide = None if request.constraint is None else guides.open(request.constraint, request.stop_at_eos).result()
    running = Generation(
        session, request.prompt_ids, request.max_new_tokens, request.sampling, None, request.stop_at_eos, guide=guide
    )
    return list(running), running.finish_reason


def together(
    setup: Setup, requests: list[Request], counts: DraftCounts | None = None, **options: Any
) -> list[tuple[list[int], str]]:
    session, _, guides = setup
    batcher = Batcher(session, guides=guides, **options)
    numbers = [batcher.submit(request) for request in requests]
    tokens, ends = drain(batcher)
    if counts is not None:
        vars(counts).update(vars(batcher.drafts))
    return [(tokens.get(number, []), ends[number].reason) for number in numbers]


def request(constraint: Constraint | None, seed: int = 0, count: int = 60, **more: Any) -> Request:
    return Request([*PROMPT, seed + 2], count, Sampling(1.5, seed=seed), constraint=constraint, **more)


def test_each_gets_what_it_gets_alone(setup: Setup) -> None:
    schema = from_json_schema(SCHEMA)
    requests = [
        request(schema, 1),
        request(None, 2, count=20),
        request(schema, 3, stop_at_eos=False),
        request(from_regex("[a-f]{4,9}"), 4),
        request(from_choices(["left", "right"]), 5),
        request(None, 6, count=30),
        request(schema, 7, top_logprobs=2),
        Request([*PROMPT, 9], 60, Sampling(), constraint=schema),
    ]
    found = together(setup, requests, rows=3)
    assert found == [alone(setup, item) for item in requests]
    assert found == together(setup, requests, rows=8, prefill_chunk=2, prefix_tokens=100)
    _, tokenizer, _ = setup
    for (ids, reason), item in zip(found, requests, strict=True):
        if item.constraint == schema and reason == "eos":
            jsonschema.validate(json.loads(tokenizer.decode(ids)), SCHEMA)
    assert [reason for (_, reason), item in zip(found, requests, strict=True) if item.constraint].count("eos") >= 5
    assert [found[1][1], found[5][1]] == ["length", "length"]
    assert tokenizer.decode(found[4][0]) in ("left", "right")


def test_drafts_change_no_constrained_answer(setup: Setup) -> None:
    """Drafts of what the constraint rules out are wrong; those that it allows end where the text is complete."""
    schema = from_json_schema(SCHEMA)
    requests = [
        Request([*PROMPT, 9], 60, Sampling(), constraint=schema),
        request(schema, 1),
        request(None, 2, count=20),
        request(from_choices(["left", "right"]), 5, stop_at_eos=False),
        Request([*PROMPT, 9], 30, Sampling(), constraint=from_regex("(ab|cd){4,9}")),
    ]
    answers = [alone(setup, item) for item in requests]
    for copied in (False, True):  # drafts of the prompt, and of the answers themselves
        makers = map(Known, [ids if copied else [] for ids, _ in answers])
        counts = DraftCounts()
        found = together(setup, requests, counts, rows=8, prefill_chunk=None, drafters=makers.__next__)
        assert found == answers
        assert counts.proposed > 20 and (counts.accepted > 20 or not copied)


class Known(Drafter):
    """Drafts an answer that it knows, and more behind its end; without one, what may never come."""

    reads_at_once = True

    def __init__(self, answer: list[int]) -> None:
        self._answer, self._count = answer, -1  # the first addition is the prompt

    def add(self, tokens: Sequence[int]) -> None:
        self._count += 1 if self._count < 0 else len(tokens)

    def propose(self, most: int) -> list[int]:
        return [*self._answer[self._count :], 40, 41, 42][: min(most, 5)]

    def learn(self, proposed: int, accepted: int) -> None:
        pass


def test_an_answer_that_length_cuts_says_so_and_one_that_just_fits_is_whole(setup: Setup) -> None:
    whole, reason = alone(setup, request(from_choices(["left", "right"]), 5))
    assert reason == "eos"
    for count, expected in ((len(whole), "eos"), (len(whole) - 1, "length")):
        item = request(from_choices(["left", "right"]), 5, count=count)
        assert alone(setup, item) == (whole[:count], expected)
        assert together(setup, [item]) == [(whole[:count], expected)]


def test_log_probabilities_are_the_model_s_own(setup: Setup) -> None:
    session, _, guides = setup
    batcher = Batcher(session, guides=guides)
    batcher.submit(request(from_choices(["left"]), top_logprobs=0))
    batcher.submit(request(None, top_logprobs=320))
    first: dict[int, Token] = {}
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Token):
                first.setdefault(event.request, event)
    free = dict(first[1].top)
    assert first[0].logprob == pytest.approx(free[first[0].token]) and first[0].logprob < -1e-3


def test_what_no_token_fits_ends_alone(setup: Setup) -> None:
    tokenizer = setup[1]
    letters = tuple((token,) for token in range(320) if "l" in (tokenizer.piece(token) or ""))
    refused = Request(PROMPT, 9, Sampling(bad_words=letters), constraint=from_choices(["left"]))
    found = together(setup, [request(None, 1, count=5), refused, request(None, 2, count=5)])
    assert [reason for _, reason in found] == ["length", "refused", "length"]


def test_a_batcher_without_guides_takes_no_constraints(setup: Setup) -> None:
    with pytest.raises(LucidError, match="takes no constraints"):
        Batcher(setup[0]).submit(request(from_choices(["a"])))


def test_a_waiting_request_can_be_cancelled(setup: Setup) -> None:
    session, _, guides = setup
    batcher = Batcher(session, rows=1, guides=guides)
    batcher.submit(request(None, 1, count=5))
    number = batcher.submit(request(from_choices(["a"])))
    batcher.step()
    batcher.cancel(number)
    assert Finished(number, "cancelled") in batcher.step()


def test_a_thread_that_cannot_be_started_is_the_fault_of_one_request(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, tokenizer, _ = setup
    guides = GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)  # has no threads yet
    batcher = Batcher(session, guides=guides)
    free, held = request(None, count=5), request(from_choices(["left", "right"]))
    number = batcher.submit(free)

    def refused(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", refused)
        with pytest.raises(LucidError, match="No more threads or processes may be started here"):
            batcher.submit(held)
    assert batcher.waiting == 1
    later = batcher.submit(held)
    tokens, _ = drain(batcher)
    assert (tokens[number], tokens[later]) == (alone(setup, free)[0], alone(setup, held)[0])


def test_a_queue_of_refused_constraints_of_any_length_is_worked_off(setup: Setup) -> None:
    """One after the other, not each within the one before."""
    opened: Future[Guide] = Future()
    opened.set_exception(LucidError("The constraint has no meaning."))
    guides = SimpleNamespace(open=lambda *_: opened)
    batcher = Batcher(setup[0], guides=guides)  # type: ignore[arg-type]
    numbers = [batcher.submit(request(from_choices(["left"]))) for _ in range(3 * sys.getrecursionlimit())]
    last = batcher.submit(request(None, 1, count=3))
    tokens, ends = drain(batcher)
    assert {ends[number].reason for number in numbers} == {"refused"} and len(tokens[last]) == 3


@contextmanager
def one_thread_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse what a pool of two starts behind its first thread."""
    start, started = Thread.start, list[Thread]()

    def first_only(thread: Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", first_only)
        yield


def two_threads(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> Batcher:
    session, tokenizer, _ = setup
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    guides = GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)
    return Batcher(session, guides=guides)


def test_a_thread_that_a_pools_thread_cannot_start_is_no_fault_of_the_constraint(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = two_threads(setup, monkeypatch)
    with one_thread_starts(monkeypatch):
        number = batcher.submit(request(from_choices(["left", "right"])))
        _, ends = drain(batcher)
    assert ends[number].reason == "error"
    assert "No more threads or processes may be started here" in (ends[number].error or "")


def test_such_a_thread_ends_a_file_of_prompts_and_answers_none(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for good, as other errors are: where more threads may start, the same command continues with this prompt."""
    prompt = Prompt(1, None, None, tuple(PROMPT), 20, Sampling(), (), True, (), from_choices(["left", "right"]))
    file, path = AnswerFile(tmp_path / "answers", {}, {1}), tmp_path / "answers"
    batcher = two_threads(setup, monkeypatch)
    with one_thread_starts(monkeypatch), pytest.raises(LucidError, match=r"^No more threads or processes may be"):
        answer_prompts(batcher, [prompt], file, setup[1])
    assert path.read_text() == ""
    answer_prompts(Batcher(setup[0], guides=setup[2]), [prompt], file, setup[1])
    file.close()
    assert json.loads(path.read_text())["text"] in ("left", "right")

"""Text with stop strings and log-probabilities from an engine's events, without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Finished, Request, Token
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.text_stream import TextPiece, TokenTexts
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job, LocalBackend, RowText

WITH_LOGPROBS = Request([], 9, top_logprobs=1)


@pytest.fixture
def byte_level(tmp_path: Path) -> TextTokenizer:
    """A tokenizer in which every byte is a token; its id is its place in the sorted byte-level alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path)


def run_row(tokenizer: TextTokenizer, text: str, reason: str, *stops: str) -> tuple[list[Any], Job]:
    job = Job(((1,),), WITH_LOGPROBS, stops=stops)
    row, out = RowText(0, job, tokenizer, TokenTexts(tokenizer)), []
    for token in tokenizer.encode(text):
        out.append(row.take(Token(5, token, -0.5, ((token, -0.5),))))
        if out[-1].reason:
            return out, job
    return [*out, row.take(Finished(5, reason, "why"))], job


@pytest.mark.parametrize("text", ["abcdef", "aé漢b", "漢字"])
def test_pieces_together_are_the_text(byte_level: TextTokenizer, text: str) -> None:
    events, _ = run_row(byte_level, text, "eos")
    pieces = [event for event in events if isinstance(event, TextPiece)]
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.tokens for piece in pieces) == len(text.encode())
    logprobs = [item for piece in pieces for item in piece.logprobs]
    assert b"".join(item.chosen.data or b"" for item in logprobs) == text.encode()
    assert [item.offset for item in logprobs] == [i for i, letter in enumerate(text) for _ in letter.encode()]
    assert events[-1].reason == "stop"


@pytest.mark.parametrize(
    ("stop", "shown"), [("cd", "ab"), ("é", "abcd"), ("f", "abcdé"), ("a", ""), ("zz", "abcdéfg"), ("gh", "abcdéfg")]
)
def test_logprobs_end_before_a_stop_string(byte_level: TextTokenizer, stop: str, shown: str) -> None:
    events, _ = run_row(byte_level, "abcdéfg", "length", stop)
    pieces = [event for event in events if isinstance(event, TextPiece)]
    assert "".join(piece.text for piece in pieces) == shown
    assert b"".join(item.chosen.data or b"" for piece in pieces for item in piece.logprobs) == shown.encode()
    assert events[-1].reason == ("stop" if len(shown) < 7 else "length")


def test_tokens_are_named_by_their_ids_if_asked_for(byte_level: TextTokenizer) -> None:
    [token] = byte_level.encode("x")
    row = RowText(0, Job(((1,),), WITH_LOGPROBS, tokens_as_ids=True), byte_level, TokenTexts(byte_level))
    piece = row.take(Token(5, token, -0.5, ((token, -0.5),)))
    assert isinstance(piece, TextPiece) and piece.text == "x"
    [item] = piece.logprobs
    assert item.chosen.text == item.top[0].text == f"token_id:{token}" and item.chosen.data == b"x"


def test_errors_of_the_engine_become_api_errors(byte_level: TextTokenizer) -> None:
    assert run_row(byte_level, "a", "context")[0][-1].reason == "length"
    for reason, status in (("error", 500), ("refused", 400)):
        with pytest.raises(ApiError, match="why") as caught:
            run_row(byte_level, "a", reason)
        assert caught.value.status == status
    with pytest.raises(ApiError, match="down"):
        RowText(0, Job(((1,),)), byte_level, TokenTexts(byte_level)).take(ApiError(503, "down"))


def test_drafted_tokens_are_counted_up_to_a_stop_string(byte_level: TextTokenizer) -> None:
    """Neither tokens behind the stop string in the same step nor the engine's own end of the generation count."""
    tokens = [Token(5, token, drafted=place != 2) for place, token in enumerate(byte_level.encode("abcdefg"))]
    events = [(0, event) for event in (*tokens, Finished(5, "length"))]

    batches = iter([events[:2], events[2:]])

    class Stream:
        cancel = close = staticmethod(lambda *_: None)

        async def next(self) -> list[Any]:
            return next(batches)

    class OneStream:
        gauges = staticmethod(lambda: {"rows": 1.0})
        submit = staticmethod(lambda *_: Stream())

    backend = LocalBackend(OneStream(), byte_level)  # type: ignore[arg-type]

    async def answer() -> list[Any]:
        return [event async for events in backend.generate(Job(((1,),), stops=("de",))) for event in events]

    assert backend.gauges() == {"rows": 1.0, "draft_tokens_accepted": 0.0}
    found = asyncio.run(answer())
    assert "".join(event.text for event in found if isinstance(event, TextPiece)) == "abc"
    assert sum(event.tokens for event in found if isinstance(event, TextPiece)) == 5  # as usage counts them
    assert backend.gauges() == {"rows": 1.0, "draft_tokens_accepted": 4.0}


def test_generations_of_a_prompt_have_seeds_of_their_own() -> None:
    job = Job(((1,), (2,)), Request([], 9, Sampling(temperature=1.0, seed=5)), n=2)
    assert [request.sampling.seed for request in job.requests()] == [5, 6, 5, 6]


def test_a_step_that_takes_too_long_makes_the_state_stuck(byte_level: TextTokenizer) -> None:
    for step, state in ((0.0, "ready"), (3.0, "stuck")):
        engine: Any = SimpleNamespace(state="ready", step_seconds=step)
        assert LocalBackend(engine, byte_level, most_step_seconds=2.0).state == state

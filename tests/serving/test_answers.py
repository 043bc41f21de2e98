"""The JSON of answers to completions and chats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from lucid_deploy.batching import Request
from lucid_deploy.generation.text_stream import TextPiece, TokenLogprob, TokenText
from lucid_deploy.serving.answers import Answer
from lucid_deploy.serving.jobs import Job


def answer(**more: Any) -> Answer:
    job = Job(((1, 2), (3,)), Request([], 9, top_logprobs=more.pop("top_logprobs", None)), more.pop("n", 1))
    fixed: dict[str, Any] = {"stream": False, "include_usage": False, "chat": False}
    return Answer(replace(job, **{**fixed, **more}), "m")


def plain(found: Any) -> Any:
    """Return what a client gets."""
    return msgspec.json.decode(msgspec.json.encode(found))


def logprob(text: str, offset: int, *others: str) -> TokenLogprob:
    top = tuple(TokenText(other, other.encode(), -1.0) for other in others)
    return TokenLogprob(TokenText(text, text.encode(), -0.5), top, offset)


def test_a_whole_completion_has_texts_reasons_and_counts() -> None:
    made = answer(n=2)
    for row, text in ((0, "x"), (3, "y"), (0, "z")):
        made.take(TextPiece(row, text, 1))
    made.closing(0, "stop")
    found = plain(made.whole())
    assert [choice["text"] for choice in found["choices"]] == ["xz", "", "", "y"]
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop", None, None, None]
    counts = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert found["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    assert (found["object"], found["model"]) == ("text_completion", "m")


def test_a_whole_chat_has_a_message() -> None:
    made = answer(chat=True)
    made.take(TextPiece(0, "hi", 1))
    found = plain(made.whole())
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert found["id"].startswith("chatcmpl-") and found["object"] == "chat.completion"


def test_a_stream_has_roles_texts_reasons_and_counts() -> None:
    made = answer(chat=True, stream=True, include_usage=True)
    assert [chunk["choices"][0]["delta"]["role"] for chunk in made.opening()] == ["assistant"] * 2
    assert made.take(TextPiece(1, "", 1)) == []  # nothing to show yet, but a token
    (chunk,) = made.take(TextPiece(1, "hi", 1))
    assert chunk is not None and chunk["choices"][0]["delta"] == {"content": "hi"} and chunk["usage"] is None
    (closing,) = made.take(TextPiece(1, "", 0, (), "length", reused=300))
    assert closing["choices"][0]["finish_reason"] == "length" and not made.is_complete
    assert made.ending().endswith(b"}\n\ndata: [DONE]\n\n")
    last = msgspec.json.decode(made.ending().split(b"\n\n")[0].removeprefix(b"data: "))
    cached = last["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (last["choices"], last["usage"]["completion_tokens"], cached) == ([], 2, 256)


def test_logprobs_of_a_completion_are_lists() -> None:
    made = answer(top_logprobs=2)
    made.take(TextPiece(0, "ab", 1, (logprob("a", 0, "a", "x"), logprob("b", 1, "x", "x"))))
    found = plain(made.whole())["choices"][0]["logprobs"]
    assert (found["tokens"], found["text_offset"], found["token_logprobs"]) == (["a", "b"], [0, 1], [-0.5, -0.5])
    assert found["top_logprobs"] == [{"a": -0.5, "x": -1.0}, {"x": -1.0, "b": -0.5}]


def test_logprobs_of_a_chat_are_the_same_whole_and_streamed() -> None:
    made, streamed = (answer(top_logprobs=1, chat=True, stream=stream) for stream in (False, True))
    piece = TextPiece(0, "é", 1, (logprob("é", 0, "e"),))
    made.take(piece)
    (found,) = plain(made.whole())["choices"][0]["logprobs"]["content"]
    (chunk,) = plain(streamed.take(piece))
    assert chunk["choices"][0]["logprobs"]["content"] == [found]
    assert (found["token"], found["bytes"]) == ("é", [0xC3, 0xA9])
    assert found["top_logprobs"] == [{"token": "e", "logprob": -1.0, "bytes": [0x65]}]

"""The JSON of answers to completions and chats, whole and as server-sent events."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from lucid_deploy.generation.text_stream import TextPiece, TokenLogprob, TokenText
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.tool_parser import ToolCallParser, WholeMessage

if TYPE_CHECKING:
    from lucid_deploy.serving.requests import PreparedRequest

Events = list[dict[str, Any]]


class Answer:
    """An answer of ``/v1/completions`` or ``/v1/chat/completions`` in the making.

    Every event of the engine goes through ``chunks`` and ``closing``, which return what a stream sends. ``whole`` is
    the answer that is not streamed. The ``fingerprint`` names the artifact, so that clients see when seeds stop giving
    the same tokens.
    """

    end_of_stream = b"data: [DONE]\n\n"

    def __init__(self, request: PreparedRequest, model: str, fingerprint: str) -> None:
        self.request = request
        self.new_tokens = self.cached_tokens = 0
        self.id = ("chatcmpl-" if request.chat else "cmpl-") + secrets.token_hex(16)
        self._common = {
            "id": self.id,
            "object": "",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        echo = request.echo or ("",) * len(request.job.prompts)
        self._choices = [_Choice(request, echo[row // request.job.n]) for row in range(request.job.rows)]

    def usage(self) -> dict[str, Any]:
        """Return the counts of tokens."""
        prompt = self.request.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.new_tokens,
            "total_tokens": prompt + self.new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        kind = "chat.completion" if self.request.chat else "text_completion"
        choices = [{"index": row, **choice.whole()} for row, choice in enumerate(self._choices)]
        return {**self._common, "object": kind, "choices": choices, "usage": self.usage()}

    def opening(self) -> Events:
        """Return the chunks before the first token: the role of a chat, the echoed prompt of a completion."""
        if self.request.chat:
            return [self._chunk(row, {"role": "assistant", "content": ""}) for row in range(len(self._choices))]
        return [self._chunk(row, choice.echo) for row, choice in enumerate(self._choices) if choice.echo]

    def chunks(self, piece: TextPiece) -> Events:
        """Take a piece in; return it as a chunk, or nothing if there is nothing to show yet."""
        self.new_tokens += piece.tokens
        choice = self._choices[piece.row]
        content, logprobs = choice.add(piece)
        return [self._chunk(piece.row, content, choice.logprobs_json(logprobs))] if content or logprobs else []

    def closing(self, row: int, reason: str) -> Events:
        """End a generation; return the chunk that says why."""
        content, final = self._choices[row].end(reason)
        return [self._chunk(row, content, reason=final)]

    def ending(self) -> Events:
        """Return the chunk after all generations: the counts, if they were requested."""
        if not self.request.include_usage:
            return []
        return [{**self._common, "object": self._chunk_kind, "choices": [], "usage": self.usage()}]

    def failure(self, error: ApiError) -> dict[str, Any]:
        """Return the event of an error within a stream."""
        return error.body()

    def frame(self, event: dict[str, Any]) -> bytes:
        """Return a chunk as a server-sent event."""
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.request.chat else "text_completion"

    def _chunk(self, row: int, content: Any, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        name = "delta" if self.request.chat else "text"
        if self.request.chat and isinstance(content, str):
            content = {"content": content} if content or logprobs else {}
        choice = {"index": row, name: content, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._common, "object": self._chunk_kind, "choices": [choice]}
        return {**chunk, "usage": None} if self.request.include_usage else chunk


class _Choice:
    """One generation of an answer.

    Log-probabilities are encoded as they come: all of a long answer's at its end would hold up the event loop.
    """

    def __init__(self, request: PreparedRequest, echo: str) -> None:
        self.echo = echo
        self.reason: str | None = None
        self._parser = None if request.tools is None else ToolCallParser(request.tools)
        self._message = WholeMessage([echo])
        self._stream, self._chat, self._top = request.stream, request.chat, request.job.top_logprobs
        self._logprobs: list[_Encoded] = []

    def add(self, piece: TextPiece) -> tuple[str | dict[str, Any], list[_Encoded]]:
        """Add a piece of the generation; return what is new."""
        logprobs = [_encoded(item) for item in piece.logprobs]
        if not self._stream:
            self._logprobs += logprobs
        if self._parser is None:
            self._message.content.append(piece.text)
            return piece.text, logprobs
        return self._message.add(self._parser.push(piece.text)).json(), logprobs

    def end(self, reason: str) -> tuple[str | dict[str, Any], str]:
        """End the generation; return what is left to show, and why it ended as clients expect it.

        Calls are a reason of their own, unless a stop string has cut one, which nobody should carry out.
        """
        rest: str | dict[str, Any] = ""
        if self._parser is not None:
            rest = self._message.add(self._parser.finish()).json()
            reason = "tool_calls" if reason == "stop" and self._parser.has_whole_calls else reason
        self.reason = reason
        return rest, reason

    def whole(self) -> dict[str, Any]:
        """Return the choice, without its index."""
        choice: dict[str, Any] = {"finish_reason": self.reason, "logprobs": self.logprobs_json(self._logprobs)}
        if self._chat:
            return {**choice, "message": {"role": "assistant", "refusal": None, **self._message.json()}}
        return {**choice, "text": "".join(self._message.content)}

    def logprobs_json(self, items: list[_Encoded]) -> dict[str, Any] | None:
        """Return log-probabilities, if they were requested."""
        if self._top is None:
            return None
        if self._chat:
            return {"content": _list(item.full for item in items), "refusal": None}
        return {
            "tokens": [item.text for item in items],
            "token_logprobs": [item.logprob for item in items],
            "top_logprobs": _list(item.by_text for item in items) if self._top else None,
            "text_offset": [item.offset for item in items],
        }


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A token's log-probabilities, as JSON where they are long."""

    text: str
    logprob: float
    offset: int
    full: bytes
    by_text: bytes


def _encoded(item: TokenLogprob) -> _Encoded:
    by_text: dict[str, float] = {}
    for token in (*item.top, item.chosen):  # of two tokens with one text the more likely counts
        by_text[token.text] = max(token.logprob, by_text.get(token.text, token.logprob))
    full = msgspec.json.encode(logprob_json(item))
    return _Encoded(item.chosen.text, item.chosen.logprob, item.offset, full, msgspec.json.encode(by_text))


def _list(items: Any) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(items) + b"]")


def logprob_json(item: TokenLogprob) -> dict[str, Any]:
    """Return a token's log-probabilities, as chats and responses have them."""
    return {**_token_json(item.chosen), "top_logprobs": [_token_json(token) for token in item.top]}


def _token_json(token: TokenText) -> dict[str, Any]:
    data = None if token.data is None else list(token.data)
    return {"token": token.text, "logprob": token.logprob, "bytes": data}

"""JSON answers to requests for completions and chats, complete or as server-sent events."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec

from lucid_deploy.generation.text_stream import TextPiece, TokenLogprob, TokenText
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.tool_parser import Delta, ToolCallParser

if TYPE_CHECKING:
    from lucid_deploy.serving.jobs import Job

Events = list[dict[str, Any]]
CACHED_STEP = 128  # cached tokens are reported in multiples of this, as by OpenAI: exact counts could reveal prompts


class Answer:
    """Builds an answer of ``/v1/completions`` or ``/v1/chat/completions``.

    Pass every piece of text to ``take``, which returns the chunks of a stream; ``whole`` returns an answer that is not
    streamed.
    """

    end_of_stream = b"data: [DONE]\n\n"

    def __init__(self, job: Job, model: str) -> None:
        self.job = job
        self.new_tokens = self.cached_tokens = 0
        self.id = ("chatcmpl-" if job.chat else "cmpl-") + secrets.token_hex(16)
        self._common = {"id": self.id, "created": int(time.time()), "model": model}
        self._chunk_kind = "chat.completion.chunk" if job.chat else "text_completion"
        self._choices = [_Choice(job) for _ in range(job.rows)]

    def usage(self) -> dict[str, Any]:
        prompt = self.job.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.new_tokens,
            "total_tokens": prompt + self.new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def whole(self) -> dict[str, Any]:
        """Return the complete answer, for requests without ``stream``."""
        kind = "chat.completion" if self.job.chat else "text_completion"
        choices = [{"index": row, **choice.whole()} for row, choice in enumerate(self._choices)]
        return {**self._common, "object": kind, "choices": choices, "usage": self.usage()}

    def opening(self) -> Events:
        """Return the chunks before the first token: in a chat, the role of each choice."""
        rows = range(self.job.rows if self.job.chat else 0)
        return [chunk for row in rows for chunk in self._show(row, {"role": "assistant", "content": ""})]

    @property
    def is_complete(self) -> bool:
        """Whether all generations have ended."""
        return all(choice.reason for choice in self._choices)

    def take(self, piece: TextPiece) -> Events:
        """Add a piece, and end its generation if it is the last; return the chunks to send, perhaps none."""
        self.new_tokens += piece.tokens
        delta, logprobs = self._choices[piece.row].add(piece)
        chunks = self._show(piece.row, delta, logprobs) if delta or piece.logprobs else []
        if not piece.reason:
            return chunks
        if piece.row % self.job.n == 0:  # count each prompt once, as prompt_tokens does
            self.cached_tokens += piece.reused - piece.reused % CACHED_STEP
        return chunks + self.closing(piece.row, piece.reason)

    def closing(self, row: int, reason: str) -> Events:
        """End a generation; return the chunk with the reason and any text or calls that were held back."""
        delta = self._choices[row].end(reason)
        return self._show(row, delta, reason=self._choices[row].reason)

    def ending(self) -> bytes:
        """Return the end of the stream, after the token counts if they were requested."""
        counts = {**self._common, "object": self._chunk_kind, "choices": [], "usage": self.usage()}
        return self.frames([counts] if self.job.include_usage else []) + self.end_of_stream

    def failure(self, error: ApiError) -> dict[str, Any]:
        """Return the event that reports an error within a stream."""
        return error.body()

    def frames(self, events: Events) -> bytes:
        """Encode events as server-sent events."""
        out = b""
        for event in events:
            kind = b"event: %s\n" % event["type"].encode() if "type" in event else b""
            out += kind + b"data: " + msgspec.json.encode(event) + b"\n\n"
        return out

    def _show(self, row: int, delta: Delta, logprobs: Any = None, reason: str | None = None) -> Events:
        """Return the chunk for new text or calls (``delta``), or for the end of a generation (``reason``)."""
        content = {"delta": delta} if self.job.chat else {"text": delta.get("content", "")}
        choice = {"index": row, **content, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._common, "object": self._chunk_kind, "choices": [choice]}
        return [{**chunk, "usage": None} if self.job.include_usage else chunk]


class _Choice:
    """One generation of an answer."""

    def __init__(self, job: Job) -> None:
        self.reason: str | None = None
        self._parser = None if job.tools is None else ToolCallParser(job.tools)
        self._stream, self._chat, self._top = job.stream, job.chat, job.request.top_logprobs
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[Any] = []

    def add(self, piece: TextPiece) -> tuple[Delta, dict[str, Any] | None]:
        """Add a piece of the generation; return the new text and calls, and the log-probabilities as JSON."""
        # Encode now: encoding all of a long answer at its end would block the event loop.
        encoded = [_chat_logprob(item) if self._chat else _completion_logprob(item) for item in piece.logprobs]
        if not self._stream:
            self._logprobs += encoded
        plain = {"content": piece.text} if piece.text or encoded else {}
        delta = plain if self._parser is None else self._parser.push(piece.text)
        return self._collect(delta), self._logprobs_json(encoded)

    def end(self, reason: str) -> Delta:
        """End the generation; return the text and calls that were held back.

        The reason ``stop`` becomes ``tool_calls`` if there are calls, none of which was cut by a stop string.
        """
        self.reason = reason
        if self._parser is None:
            return {}
        rest = self._collect(self._parser.finish())
        if reason == "stop" and self._parser.has_whole_calls:
            self.reason = "tool_calls"
        return rest

    def _collect(self, delta: Delta) -> Delta:
        self._texts.append(delta.get("content", ""))
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                self._calls.append({"id": part["id"], "type": "function", "function": {**part["function"]}})
            else:
                self._calls[-1]["function"]["arguments"] += part["function"]["arguments"]
        return delta

    def whole(self) -> dict[str, Any]:
        choice: dict[str, Any] = {"finish_reason": self.reason, "logprobs": self._logprobs_json(self._logprobs)}
        text = "".join(self._texts)
        if not self._chat:
            return {**choice, "text": text}
        message: dict[str, Any] = {"role": "assistant", "refusal": None, "content": text}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        return {**choice, "message": message}

    def _logprobs_json(self, encoded: list[Any]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        if self._chat:
            return {"content": encoded, "refusal": None}
        tokens, logprobs, top, offsets = ([item[i] for item in encoded] for i in range(4))
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": top if self._top else None,
            "text_offset": offsets,
        }


def _chat_logprob(item: TokenLogprob) -> msgspec.Raw:
    shown = {**_token_json(item.chosen), "top_logprobs": [_token_json(token) for token in item.top]}
    return msgspec.Raw(msgspec.json.encode(shown))


def _completion_logprob(item: TokenLogprob) -> tuple[str, float, msgspec.Raw, int]:
    by_text: dict[str, float] = {}
    for token in (*item.top, item.chosen):  # of tokens with the same text, keep the most likely
        by_text[token.text] = max(token.logprob, by_text.get(token.text, token.logprob))
    return item.chosen.text, item.chosen.logprob, msgspec.Raw(msgspec.json.encode(by_text)), item.offset


def _token_json(token: TokenText) -> dict[str, Any]:
    data = None if token.data is None else list(token.data)
    return {"token": token.text, "logprob": token.logprob, "bytes": data}

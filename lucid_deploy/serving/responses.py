"""The JSON of answers, whole and in chunks, for completions and chats."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import TextPiece, TokenLogprob, TokenText
from lucid_deploy.serving.requests import PreparedRequest
from lucid_deploy.serving.tool_parser import AnswerDelta, ToolCallParser


class Answer:
    """An answer in the making.

    Attributes:
        cached_tokens: Prompt tokens that stored prefixes held, as answers count them.
        end_of_stream: What comes behind the last event.

    Args:
        request: The request.
        model: The served name.
        fingerprint: Names the artifact, so that clients see when seeds stop giving the same tokens.
    """

    end_of_stream = b"data: [DONE]\n\n"

    def __init__(self, request: PreparedRequest, model: str, fingerprint: str) -> None:
        self.request = request
        self.new_tokens = self.cached_tokens = 0
        self._common: dict[str, Any] = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + secrets.token_hex(16),
            "object": "",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        echo = [request.echo[row // request.job.n] if request.echo else "" for row in range(request.job.rows)]
        self._texts: list[list[str]] = [[text] for text in echo]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in echo]
        self._reasons: list[str | None] = [None for _ in echo]
        tools = request.tools
        self._parsers = [] if tools is None else [ToolCallParser(tools) for _ in echo]

    @property
    def id(self) -> str:
        """Names the answer."""
        return str(self._common["id"])

    def add(self, piece: TextPiece) -> None:
        """Take a piece into the whole answer."""
        self.new_tokens += piece.tokens
        self._texts[piece.row].append(piece.text)
        self._logprobs[piece.row] += piece.logprobs

    def end(self, row: int, reason: str) -> None:
        """Note why a generation ended."""
        self._reasons[row] = reason

    def usage(self) -> dict[str, Any]:
        """Return the counts."""
        prompt = self.request.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.new_tokens,
            "total_tokens": prompt + self.new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        choices = []
        for row, texts in enumerate(self._texts):
            logprobs = self._logprobs_json(self._logprobs[row])
            choice: dict[str, Any] = {"index": row, "finish_reason": self._reasons[row], "logprobs": logprobs}
            if self.request.chat:
                choice["message"] = {"role": "assistant", "content": "".join(texts), "refusal": None}
                if self._parsers:
                    self._read_calls(choice)
            else:
                choice["text"] = "".join(texts)
            choices.append(choice)
        kind = "chat.completion" if self.request.chat else "text_completion"
        return {**self._common, "object": kind, "choices": choices, "usage": self.usage()}

    def _read_calls(self, choice: dict[str, Any]) -> None:
        """Put the calls that a choice's text has in their place."""
        parser = self._parsers[choice["index"]]
        deltas = [parser.push(choice["message"]["content"]), parser.finish()]
        text = "".join(delta.content for delta in deltas)
        choice["message"]["content"] = text or (None if parser.calls else "")
        calls: list[dict[str, Any]] = []
        for part in (part for delta in deltas for part in delta.calls):
            if part.id is not None:
                calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}})
            calls[part.index]["function"]["arguments"] += part.arguments
        if calls:
            choice["message"]["tool_calls"] = calls
        choice["finish_reason"] = self._final(choice["index"], choice["finish_reason"])

    def _final(self, row: int, reason: str | None) -> str | None:
        """Return why a generation ended, as clients expect it: calls are a reason of their own, unless a stop string
        has cut one, which nobody should carry out.
        """
        whole = bool(self._parsers) and self._parsers[row].has_whole_calls
        return "tool_calls" if reason == "stop" and whole else reason

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunks before the first token: the role of a chat, the echoed prompt of a completion."""
        if self.request.chat:
            return [self._chunk(row, {"role": "assistant", "content": ""}) for row in range(len(self._texts))]
        return [self._chunk(row, texts[0]) for row, texts in enumerate(self._texts) if texts[0]]

    def chunks(self, piece: TextPiece) -> list[dict[str, Any]]:
        """Return a piece as a chunk; none if there is nothing to show yet."""
        self.new_tokens += piece.tokens
        if not piece.text and not piece.logprobs:
            return []
        content: Any = {"content": piece.text} if self.request.chat else piece.text
        if self._parsers:
            content = delta_json(self._parsers[piece.row].push(piece.text))
            if not content and not piece.logprobs:
                return []
        return [self._chunk(piece.row, content, self._logprobs_json(list(piece.logprobs)))]

    def closing(self, row: int, reason: str) -> list[dict[str, Any]]:
        """Return the chunk that says why a generation ended."""
        content: Any = {} if self.request.chat else ""
        if self._parsers:
            content = delta_json(self._parsers[row].finish())
        return [self._chunk(row, content, reason=self._final(row, reason))]

    def ending(self) -> list[dict[str, Any]]:
        """Return the chunk behind all generations: the counts, if they were asked for."""
        return [self.usage_chunk()] if self.request.include_usage else []

    def failure(self, error: ApiError) -> dict[str, Any]:
        """Return the event of an error within a stream."""
        return error.body()

    def frame(self, event: dict[str, Any]) -> bytes:
        """Return a chunk as a server-sent event."""
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return f"data: {text}\n\n".encode()

    def usage_chunk(self) -> dict[str, Any]:
        """Return the last chunk of a stream with ``include_usage``."""
        return {**self._common, "object": self._chunk_kind, "choices": [], "usage": self.usage()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.request.chat else "text_completion"

    def _chunk(self, row: int, content: Any, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        field = "delta" if self.request.chat else "text"
        choice = {"index": row, field: content, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._common, "object": self._chunk_kind, "choices": [choice]}
        return {**chunk, "usage": None} if self.request.include_usage else chunk

    def _logprobs_json(self, items: list[TokenLogprob]) -> dict[str, Any] | None:
        if self.request.job.top_logprobs is None:
            return None
        if not self.request.chat:
            return {
                "tokens": [item.chosen.text for item in items],
                "token_logprobs": [item.chosen.logprob for item in items],
                "top_logprobs": [_by_text(item) for item in items] if self.request.job.top_logprobs else None,
                "text_offset": [item.offset for item in items],
            }
        content = [{**token_json(item.chosen), "top_logprobs": [token_json(t) for t in item.top]} for item in items]
        return {"content": content, "refusal": None}


def delta_json(delta: AnswerDelta) -> dict[str, Any]:
    """Return what is new of an answer as a chunk has it."""
    out: dict[str, Any] = {"content": delta.content} if delta.content else {}
    calls = []
    for part in delta.calls:
        function: dict[str, Any] = {"arguments": part.arguments}
        call: dict[str, Any] = {"index": part.index, "function": function}
        if part.id is not None:
            call |= {"id": part.id, "type": "function", "function": {"name": part.name, **function}}
        calls.append(call)
    return {**out, "tool_calls": calls} if calls else out


def token_json(token: TokenText) -> dict[str, Any]:
    """Return a token with its log-probability, as chats and responses have it."""
    data = None if token.data is None else list(token.data)
    return {"token": token.text, "logprob": token.logprob, "bytes": data}


def _by_text(item: TokenLogprob) -> dict[str, float]:
    """Return alternatives by text, the chosen token among them; of two with one text the more likely counts."""
    out: dict[str, float] = {}
    for token in (*item.top, item.chosen):
        out[token.text] = max(token.logprob, out.get(token.text, token.logprob))
    return out

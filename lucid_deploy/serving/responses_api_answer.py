"""The JSON of ``/v1/responses``, whole, or as the typed events of OpenAI's Responses API."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import TextPiece, TokenLogprob
from lucid_deploy.serving.requests import PreparedRequest
from lucid_deploy.serving.responses_api_output import CallItem, ItemEvent, MessageItem
from lucid_deploy.serving.tool_parser import AnswerDelta, ToolCallParser

# What this server does not have, or a request did not ask for, as an answer says it.
_NEUTRAL: dict[str, Any] = {
    "error": None,
    "background": False,
    "parallel_tool_calls": False,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "tool_choice": "none",
    "tools": [],
    "truncation": "disabled",
}


class ResponseAnswer:
    """An answer in the making; the same methods as :class:`lucid_deploy.serving.responses.Answer`.

    Args:
        request: The request.
        model: The served name.
        fingerprint: Names the artifact.
    """

    end_of_stream = b""  # the last event says that it is the last

    def __init__(self, request: PreparedRequest, model: str, fingerprint: str) -> None:
        self.request = request
        self.new_tokens = self.cached_tokens = 0
        self._common: dict[str, Any] = {
            "id": "resp_" + secrets.token_hex(16),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
            **_NEUTRAL,
            **(request.response or {}),
        }
        self._parser = None if request.tools is None else ToolCallParser(request.tools)
        self._items: list[MessageItem | CallItem] = []  # all but the last are complete
        self._status = "in_progress"
        self._number = -1

    @property
    def id(self) -> str:
        """Names the answer."""
        return str(self._common["id"])

    def add(self, piece: TextPiece) -> None:
        """Take a piece into the whole answer."""
        self.chunks(piece)

    def end(self, row: int, reason: str) -> None:
        """Note why the generation ended: an answer that was cut by its length is incomplete."""
        self.closing(row, reason)

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed, or the state of one that is."""
        started = self._status != "in_progress"
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._common,
            "status": self._status,
            "incomplete_details": cut,
            "output": self._output() if started else [],
            "usage": self._usage() if started else None,
        }

    def opening(self) -> list[dict[str, Any]]:
        """Return the events before the first token. Where calls may come, items begin with what they hold."""
        begun = [self._event(f"response.{name}", response=self.whole()) for name in ("created", "in_progress")]
        return begun if self._parser is not None else begun + self._begin(MessageItem())

    def chunks(self, piece: TextPiece) -> list[dict[str, Any]]:
        """Return a piece as events; none if there is nothing to show yet."""
        self.new_tokens += piece.tokens
        if self._parser is None:
            return self._say(piece.text, piece.logprobs)
        return self._take(self._parser.push(piece.text))

    def closing(self, row: int, reason: str) -> list[dict[str, Any]]:
        """Return the events of the end: of the last item and of the whole."""
        events = [] if self._parser is None else self._take(self._parser.finish())
        if not self._items:
            events += self._begin(MessageItem())
        self._status = "incomplete" if reason == "length" else "completed"
        return [
            *events,
            *self._placed(self._items[-1].end(self._status)),
            self._event(f"response.{self._status}", response=self.whole()),
        ]

    def ending(self) -> list[dict[str, Any]]:
        """Return nothing: the last event has the counts."""
        return []

    def failure(self, error: ApiError) -> dict[str, Any]:
        """Return the event of an error within a stream; OpenAI's client raises it."""
        return {**self._event("error"), **error.body()}

    def frame(self, event: dict[str, Any]) -> bytes:
        """Return an event as a server-sent event, which is named by its type."""
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return f"event: {event['type']}\ndata: {text}\n\n".encode()

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **more}

    def _take(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        """Return the events of what is new of text and calls; no text comes behind a call."""
        events = self._say(delta.content, ())
        for part in delta.calls:
            if part.id is not None and part.name is not None:
                events += self._begin(CallItem(part.id, part.name))
            last = self._items[-1]
            assert isinstance(last, CallItem)
            events += self._placed(last.more(part.arguments)) if part.arguments else []
        return events

    def _say(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        if not text and not logprobs:
            return []
        events = [] if self._items else self._begin(MessageItem())
        last = self._items[-1]
        assert isinstance(last, MessageItem)
        return events + self._placed(last.more(text, logprobs))

    def _begin(self, item: MessageItem | CallItem) -> list[dict[str, Any]]:
        """Begin an item, which ends the one before."""
        ended = self._placed(self._items[-1].end("completed")) if self._items else []
        self._items.append(item)
        return ended + self._placed(item.beginning())

    def _placed(self, events: list[ItemEvent]) -> list[dict[str, Any]]:
        """Return events of the last item."""
        place = len(self._items) - 1
        return [self._event(f"response.{kind}", output_index=place, **more) for kind, more in events]

    def _output(self) -> list[dict[str, Any]]:
        return [*(item.json("completed") for item in self._items[:-1]), self._items[-1].json(self._status)]

    def _usage(self) -> dict[str, Any]:
        prompt = self.request.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self.new_tokens,
        }

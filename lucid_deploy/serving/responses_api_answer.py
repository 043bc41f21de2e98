"""The JSON of ``/v1/responses``: one message, whole, or as the typed events of OpenAI's Responses API."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import TextPiece, TokenLogprob
from lucid_deploy.serving.requests import PreparedRequest
from lucid_deploy.serving.responses import token_json

_PLACE = {"output_index": 0, "content_index": 0}  # there is one message with one part
# What this server does not have, as an answer says it.
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
        self.new_tokens = 0
        self._common: dict[str, Any] = {
            "id": "resp_" + secrets.token_hex(16),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
            **_NEUTRAL,
            **(request.response or {}),
        }
        self._item = "msg_" + secrets.token_hex(16)
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._status = "in_progress"
        self._number = -1

    @property
    def id(self) -> str:
        """Names the answer."""
        return str(self._common["id"])

    def add(self, piece: TextPiece) -> None:
        """Take a piece into the whole answer."""
        self.new_tokens += piece.tokens
        self._texts.append(piece.text)
        self._logprobs += piece.logprobs

    def end(self, row: int, reason: str) -> None:
        """Note why the generation ended: an answer that was cut by its length is incomplete."""
        self._status = "incomplete" if reason == "length" else "completed"

    def whole(self) -> dict[str, Any]:
        """Return the answer that is not streamed, or the state of one that is."""
        started = self._status != "in_progress"
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._common,
            "status": self._status,
            "incomplete_details": cut,
            "output": [self._message()] if started else [],
            "usage": self._usage() if started else None,
        }

    def opening(self) -> list[dict[str, Any]]:
        """Return the events before the first token."""
        return [
            self._event("response.created", response=self.whole()),
            self._event("response.in_progress", response=self.whole()),
            self._event("response.output_item.added", output_index=0, item={**self._message(), "content": []}),
            self._event("response.content_part.added", item_id=self._item, part=self._part("", []), **_PLACE),
        ]

    def chunk(self, piece: TextPiece) -> dict[str, Any] | None:
        """Return a piece as an event, or None if there is nothing to show yet."""
        self.add(piece)
        if not piece.text and not piece.logprobs:
            return None
        delta = {"item_id": self._item, "delta": piece.text, "logprobs": self._logprobs_json(list(piece.logprobs))}
        return self._event("response.output_text.delta", **delta, **_PLACE)

    def closing(self, row: int, reason: str) -> list[dict[str, Any]]:
        """Return the events of the end: of the text, its part, the message and the whole."""
        self.end(row, reason)
        message = self._message()
        (part,) = message["content"]
        text = {"item_id": self._item, "text": part["text"], "logprobs": part["logprobs"]}
        return [
            self._event("response.output_text.done", **text, **_PLACE),
            self._event("response.content_part.done", item_id=self._item, part=part, **_PLACE),
            self._event("response.output_item.done", output_index=0, item=message),
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

    def _message(self) -> dict[str, Any]:
        content = [self._part("".join(self._texts), self._logprobs_json(self._logprobs))]
        return {"id": self._item, "type": "message", "role": "assistant", "status": self._status, "content": content}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs_json(self, items: list[TokenLogprob]) -> list[dict[str, Any]]:
        return [{**token_json(item.chosen), "top_logprobs": [token_json(t) for t in item.top]} for item in items]

    def _usage(self) -> dict[str, Any]:
        prompt = self.request.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},  # not counted for single requests
            "output_tokens": self.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self.new_tokens,
        }

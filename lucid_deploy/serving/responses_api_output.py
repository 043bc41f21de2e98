"""The items of an answer of ``/v1/responses``, messages and calls of functions, with their events."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from lucid_deploy.serving.jobs import TokenLogprob
from lucid_deploy.serving.responses import token_json

ItemEvent = tuple[str, dict[str, Any]]  # an event's type behind "response.", and its fields


@dataclass
class MessageItem:
    """A message with one part, its text.

    Attributes:
        id: Names it.
        texts: The text so far, in pieces.
        logprobs: Of its tokens, if they were asked for.
    """

    id: str = field(default_factory=lambda: "msg_" + secrets.token_hex(16))
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def json(self, status: str) -> dict[str, Any]:
        """Return the item."""
        content = [_part("".join(self.texts), logprobs_json(self.logprobs))]
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}

    def beginning(self) -> list[ItemEvent]:
        """Return the events before its text."""
        return [
            ("output_item.added", {"item": {**self.json("in_progress"), "content": []}}),
            ("content_part.added", {"item_id": self.id, "content_index": 0, "part": _part("", [])}),
        ]

    def more(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[ItemEvent]:
        """Add a piece of text; return its event."""
        self.texts.append(text)
        self.logprobs += logprobs
        delta = {"delta": text, "logprobs": logprobs_json(list(logprobs))}
        return [("output_text.delta", {"item_id": self.id, "content_index": 0, **delta})]

    def end(self, status: str) -> list[ItemEvent]:
        """Return the events of its end: of the text, its part and itself."""
        item = self.json(status)
        (part,) = item["content"]
        place = {"item_id": self.id, "content_index": 0}
        return [
            ("output_text.done", {**place, "text": part["text"], "logprobs": part["logprobs"]}),
            ("content_part.done", {**place, "part": part}),
            ("output_item.done", {"item": item}),
        ]


@dataclass
class CallItem:
    """A call of a function.

    Attributes:
        call_id: Names it in its result.
        name: The function's.
        id: Names the item.
        arguments: The text of a JSON object so far, in pieces.
    """

    call_id: str
    name: str
    id: str = field(default_factory=lambda: "fc_" + secrets.token_hex(16))
    arguments: list[str] = field(default_factory=list)

    def json(self, status: str) -> dict[str, Any]:
        """Return the item."""
        call = {"call_id": self.call_id, "name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function_call", "status": status, **call}

    def beginning(self) -> list[ItemEvent]:
        """Return the event before its arguments."""
        return [("output_item.added", {"item": self.json("in_progress")})]

    def more(self, arguments: str) -> list[ItemEvent]:
        """Add a piece of the arguments; return its event."""
        self.arguments.append(arguments)
        return [("function_call_arguments.delta", {"item_id": self.id, "delta": arguments})]

    def end(self, status: str) -> list[ItemEvent]:
        """Return the events of its end: of the arguments and itself."""
        item = self.json(status)
        arguments = {"item_id": self.id, "name": self.name, "arguments": item["arguments"]}
        return [("function_call_arguments.done", arguments), ("output_item.done", {"item": item})]


def logprobs_json(items: list[TokenLogprob]) -> list[dict[str, Any]]:
    """Return log-probabilities as the text of a message has them."""
    return [{**token_json(item.chosen), "top_logprobs": [token_json(t) for t in item.top]} for item in items]


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

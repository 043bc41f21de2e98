"""From the text of an answer, as it comes, to its content and its calls of tools."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field
from typing import Any

from lucid_deploy.serving.tool_formats import ToolFormat

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class CallDelta:
    """What is new of a call: its id and name first, then its arguments in pieces, which are JSON together."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class AnswerDelta:
    """What is new of an answer."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return it as a chunk of a stream has it."""
        out: dict[str, Any] = {"content": self.content} if self.content else {}
        calls = []
        for part in self.calls:
            call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.arguments}}
            if part.id is not None:
                function = {"name": part.name, "arguments": part.arguments}
                call = {"index": part.index, "id": part.id, "type": "function", "function": function}
            calls.append(call)
        return {**out, "tool_calls": calls} if calls else out


@dataclass
class WholeMessage:
    """An answer's content and calls so far, from what was new of it."""

    content: list[str] = field(default_factory=list)
    calls: list[tuple[CallDelta, list[str]]] = field(default_factory=list)  # each with its arguments in pieces

    def add(self, delta: AnswerDelta) -> AnswerDelta:
        """Add what is new; return it."""
        self.content.append(delta.content)
        for part in delta.calls:
            if part.id is not None:
                self.calls.append((part, []))
            self.calls[part.index][1].append(part.arguments)
        return delta

    def json(self) -> dict[str, Any]:
        """Return the message without its role; beside calls an empty content is null."""
        content = "".join(self.content)
        if not self.calls:
            return {"content": content}
        named = [(call.id, {"name": call.name, "arguments": "".join(parts)}) for call, parts in self.calls]
        calls = [{"id": call, "type": "function", "function": function} for call, function in named]
        return {"content": content or None, "tool_calls": calls}


class ToolCallParser:
    """Reads one answer. A grammar holds answers to the format, so calls are never malformed; they may be cut."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._buffer = ""
        self._read = self._content
        self._at_start = True
        self._depth, self._in_text, self._escaped = 0, False, False
        self._new: list[CallDelta] = []
        self._shown = ""
        self.calls = 0

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and the arguments of each have come to their end."""
        return self.calls > 0 and self._read != self._arguments

    def push(self, text: str) -> AnswerDelta:
        """Add text; return what it makes known."""
        self._buffer += text
        while self._read():
            pass
        return self._delta()

    def finish(self) -> AnswerDelta:
        """Return what is held back; call it when no more text comes."""
        if self._read == self._content:
            self._shown += self._buffer
        self._buffer = ""
        return self._delta()

    def _delta(self) -> AnswerDelta:
        found = AnswerDelta(self._shown, tuple(self._new))
        self._shown, self._new = "", []
        return found

    def _content(self) -> bool:
        """Let out text up to the trigger; hold back what may become one."""
        form = self._form
        place = self._buffer.find(form.trigger)
        if place >= 0 and (form.text_before or (self._at_start and place == 0)):
            self._shown += self._buffer[:place]
            self._buffer = self._buffer[place:]
            self._read = self._first
            return True
        held = 0
        if form.text_before:
            lengths = range(min(len(form.trigger) - 1, len(self._buffer)), 0, -1)
            held = next((n for n in lengths if form.trigger.startswith(self._buffer[-n:])), 0)
        end = len(self._buffer) - held
        self._at_start = self._at_start and not self._buffer
        self._shown, self._buffer = self._shown + self._buffer[:end], self._buffer[end:]
        return False

    def _first(self) -> bool:
        return self._skip(self._form.opening + self._form.call[0]) and self._go(self._name)

    def _name(self) -> bool:
        name, behind, rest = self._buffer.partition(self._form.call[1])
        if not behind:
            return False
        letters = "".join(secrets.choice(_LETTERS) for _ in range(self._form.id_length))
        self._new.append(CallDelta(self.calls, id=self._form.id_prefix + letters, name=name))
        self.calls, self._buffer = self.calls + 1, rest
        self._depth, self._in_text, self._escaped = 0, False, False
        return self._go(self._arguments)

    def _arguments(self) -> bool:
        """Let out arguments up to the bracket that ends their object."""
        for place, sign in enumerate(self._buffer):
            if self._in_text:
                self._escaped, ends = sign == "\\" and not self._escaped, sign == '"' and not self._escaped
                self._in_text = not ends
            elif sign == '"':
                self._in_text = True
            else:
                self._depth += (sign in "{[") - (sign in "}]")
                if sign in "}]" and self._depth == 0:
                    self._take_arguments(place + 1)
                    return self._go(self._behind)
        self._take_arguments(len(self._buffer))
        return False

    def _take_arguments(self, count: int) -> None:
        if count:
            self._new.append(CallDelta(self.calls - 1, self._buffer[:count]))
        self._buffer = self._buffer[count:]

    def _behind(self) -> bool:
        return self._skip(self._form.call[2]) and self._go(self._next)

    def _next(self) -> bool:
        """Go on with another call, if one begins."""
        return self._skip(self._form.between + self._form.call[0]) and self._go(self._name)

    def _skip(self, expected: str) -> bool:
        """Take a text off the buffer; return whether it is there."""
        if not self._buffer.startswith(expected):
            return False
        self._buffer = self._buffer[len(expected) :]
        return True

    def _go(self, state: object) -> bool:
        self._read = state  # type: ignore[assignment]
        return True

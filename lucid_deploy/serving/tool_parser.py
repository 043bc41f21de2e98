"""Split the text of an answer, as it is generated, into content and tool calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator
from typing import Any

from lucid_deploy.serving.tool_formats import ToolFormat

_LETTERS = string.ascii_letters + string.digits


Delta = dict[str, Any]  # new ``content`` and ``tool_calls``, in the form of ``delta`` in a chunk of a chat stream


class ToolCallParser:
    """Parses one answer. A grammar enforces the format, so calls are never malformed, but the last may be cut off.

    The first delta of a call has its id and name; later ones have pieces of its arguments, which together are JSON.

    Attributes:
        calls: Number of calls that have begun.
    """

    def __init__(self, form: ToolFormat) -> None:
        self.calls = 0
        self._form = form
        self._buffer = ""
        self._in_content, self._in_arguments = True, False
        self._shown, self._new = "", list[dict[str, Any]]()  # since the last delta
        self._reading = self._read()

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and the arguments of all of them are complete."""
        return self.calls > 0 and not self._in_arguments

    def push(self, text: str) -> Delta:
        """Add text of the answer; return the new content and calls, as far as they are certain."""
        self._buffer += text
        next(self._reading)
        return self._delta()

    def finish(self) -> Delta:
        """Return content that is still buffered, but no part of a call; call it at the end of the answer."""
        if self._in_content:
            self._shown += self._take(len(self._buffer))
        return self._delta()

    def _delta(self) -> Delta:
        found: Delta = {"content": self._shown} if self._shown else {}
        found |= {"tool_calls": self._new} if self._new else {}
        self._shown, self._new = "", []
        return found

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _read(self) -> Iterator[None]:
        """Parse the answer; yield whenever more text is needed."""
        form = self._form
        yield from self._content()
        yield from self._skip(form.opening + form.call[0])
        while True:
            while form.call[1] not in self._buffer:
                yield
            name, _, self._buffer = self._buffer.partition(form.call[1])
            letters = "".join(secrets.choice(_LETTERS) for _ in range(form.id_length))
            called = {"name": name, "arguments": ""}
            id = form.id_prefix + letters
            self._new.append({"index": self.calls, "id": id, "type": "function", "function": called})
            self.calls += 1
            yield from self._arguments()
            yield from self._skip(form.call[2] + form.between + form.call[0])  # never ends after the last call

    def _content(self) -> Iterator[None]:
        """Emit text up to the trigger; buffer text that may become a trigger."""
        trigger, at_start = self._form.trigger, True
        while (place := self._buffer.find(trigger)) < 0 or not (self._form.text_before or (at_start and place == 0)):
            buffered = 0
            if self._form.text_before:
                lengths = range(min(len(trigger) - 1, len(self._buffer)), 0, -1)
                buffered = next((n for n in lengths if trigger.startswith(self._buffer[-n:])), 0)
            at_start = at_start and not self._buffer
            self._shown += self._take(len(self._buffer) - buffered)
            yield
        self._shown += self._take(place)
        self._in_content = False

    def _arguments(self) -> Iterator[None]:
        """Emit arguments up to the bracket that ends their object."""
        self._in_arguments, depth, in_text, escaped, place = True, 0, False, False, 0
        while self._in_arguments:
            for place, sign in enumerate(self._buffer, 1):  # noqa: B007 (used after the loop)
                if in_text:
                    escaped, in_text = sign == "\\" and not escaped, sign != '"' or escaped
                elif sign == '"':
                    in_text = True
                else:
                    depth += (sign in "{[") - (sign in "}]")
                    if sign in "}]" and depth == 0:
                        self._in_arguments = False
                        break
            if self._buffer:
                self._new.append({"index": self.calls - 1, "function": {"arguments": self._take(place)}})
            if self._in_arguments:
                yield

    def _skip(self, expected: str) -> Iterator[None]:
        while not self._buffer.startswith(expected):
            yield
        self._take(len(expected))

"""Render chats in a worker process: a template is a program that came with the model, and may loop or fill memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from lucid_deploy.artifact.chat import load_chat_templates, read_chat_templates
from lucid_deploy.bounded_process import BoundedProcess, Bounds, bound_memory, serve
from lucid_deploy.errors import LucidError


class _Ready(msgspec.Struct, frozen=True):
    refusal: str | None


class _Chat(msgspec.Struct, frozen=True):
    messages: list[dict[str, Any]]
    continue_last: bool


class ChatRenderer:
    """Render chats without tools, within limits on time and memory. Close it, or use it in a ``with``.

    Attributes:
        refusal: Why the model's templates cannot be used for such chats; None if they can.
    """

    def __init__(self, directory: Path) -> None:
        setup = msgspec.msgpack.encode(str(directory))
        self._process = BoundedProcess(__name__, setup, Bounds(), "Rendering this chat with the model's template")
        self._close = weakref.finalize(self, self._process.close)
        self._process.start()
        assert self._process.ready is not None
        self.refusal = msgspec.msgpack.decode(self._process.ready, type=_Ready).refusal

    def __enter__(self) -> ChatRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, messages: list[dict[str, Any]], continue_last: bool = False) -> str:
        """Return a chat that opens the model's answer, or with ``continue_last`` ends where its last message does."""
        try:
            task = msgspec.msgpack.encode(_Chat(messages, continue_last))
        except UnicodeEncodeError as error:
            raise LucidError("The chat has half a character (a lone surrogate).") from error
        return msgspec.msgpack.decode(self._process.ask(task), type=str)

    def close(self) -> None:
        """End the process."""
        self._close()


def chat_renderer(directory: Path) -> ChatRenderer | None:
    """Return the renderer of an artifact's chats without tools; None if it has no chat template."""
    if read_chat_templates(directory) is None:
        return None
    renderer = ChatRenderer(directory)
    if renderer.refusal is not None:
        renderer.close()
        raise LucidError(renderer.refusal)
    return renderer


def main() -> None:
    """Render chats until stdin ends."""

    def open_worker(data: bytes, bounds: Bounds) -> tuple[bytes, Callable[[bytes], bytes]]:
        bound_memory(bounds.memory)  # before the template: compiling it evaluates its constants
        templates = load_chat_templates(Path(msgspec.msgpack.decode(data, type=str)))
        assert templates is not None
        refusal = None
        try:
            templates.chosen()
        except LucidError as error:
            refusal = str(error)

        def render(frame: bytes) -> bytes:
            chat = msgspec.msgpack.decode(frame, type=_Chat)
            return msgspec.msgpack.encode(templates.chosen().render(chat.messages, continue_last=chat.continue_last))

        return msgspec.msgpack.encode(_Ready(refusal)), render

    serve(open_worker)


if __name__ == "__main__":
    main()

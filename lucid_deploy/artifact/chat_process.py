"""Render chats in a worker process: a template is a program that came with the model, and may hang or fill memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.chat import load_chat_templates, read_chat_templates
from lucid_deploy.bounded_process import BoundedProcess, Bounds, bound_memory, serve


class ChatRenderer:
    """Render chats without tools, within limits on time and memory. Close it, or use it in a ``with``.

    Raises:
        LucidError: The model's templates cannot be used for such chats, or the process does not start.
    """

    def __init__(self, directory: Path) -> None:
        what = "Rendering this chat with the model's template"
        self._process = BoundedProcess(__name__, directory, Bounds(), what)
        self.close = weakref.finalize(self, self._process.close)
        try:
            self._process.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ChatRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, messages: list[dict[str, Any]], continue_last: bool = False) -> str:
        """Return a chat as text; it ends with the answer's opening or, if ``continue_last``, with the last message."""
        return str(self._process.ask((messages, continue_last)))


def chat_renderer(directory: Path) -> ChatRenderer | None:
    """Return the renderer of an artifact's chats without tools; None if it has no chat template."""
    return None if read_chat_templates(directory) is None else ChatRenderer(directory)


def open_renderer(directory: Path, bounds: Bounds) -> tuple[None, Callable[[Any], str]]:
    """Compile the template; return None (nothing for the parent) and a function of a pair (messages, continue_last)."""
    bound_memory(bounds.memory)  # before the template: compiling it evaluates its constants
    templates = load_chat_templates(directory)
    assert templates is not None
    template = templates.chosen()
    return None, lambda task: template.render(task[0], continue_last=task[1])


if __name__ == "__main__":
    serve(open_renderer)

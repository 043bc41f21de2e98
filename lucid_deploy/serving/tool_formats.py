"""How models of a family write calls of tools: read from the files in ``tool_formats``, found by the chat template."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent / "tool_formats"


class ToolFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A way to write calls: ``opening``, then calls with ``between`` between them, then ``closing``.

    Attributes:
        call: What stands before the name, between name and arguments, and behind the arguments, a JSON object.
    """

    name: str  # the format's
    template: tuple[str, ...]  # texts that a chat template of this format has, all of them
    template_without: tuple[str, ...]  # texts that it does not have
    trigger: str  # what the first call begins with, ``opening`` included; text of the answer never has it
    opening: str  # in front of the first call
    call: tuple[str, str, str]
    between: str  # between two calls
    closing: str  # behind the last call
    several: bool  # whether an answer may have several calls
    text_before: bool  # whether text may come before the first call; else an answer is calls or text
    id_prefix: str  # what ids of calls begin with
    id_length: int  # letters and digits behind that


@lru_cache(maxsize=1)
def tool_formats() -> tuple[ToolFormat, ...]:
    """Return all formats, by name."""
    return tuple(msgspec.json.decode(path.read_bytes(), type=ToolFormat) for path in sorted(FOLDER.glob("*.json")))


def tool_format_of(template: str) -> ToolFormat | None:
    """Return the format that a chat template is written for; None if it has no tools, or an unknown form of them."""
    for item in tool_formats():
        has = all(text in template for text in item.template)
        if has and not any(text in template for text in item.template_without):
            return item
    return None

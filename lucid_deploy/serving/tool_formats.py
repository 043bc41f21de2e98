"""The formats in which model families write tool calls, and the grammar of an answer that may call tools.

Formats are read from the files in ``tool_formats`` and recognized by texts in the chat template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from lucid_deploy.generation.constraint import JSON_OPTIONS, Constraint

_ANY = r"(.|\n)*"
FOLDER = Path(__file__).parent / "tool_formats"


class ToolFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A way to write tool calls: ``opening``, then calls with ``between`` between them, then ``closing``.

    Attributes:
        call: Texts before a tool's name, between the name and its arguments (a JSON object), and after the arguments.
    """

    name: str  # the format's
    template: tuple[str, ...]  # texts that a chat template of this format contains, all of them
    template_without: tuple[str, ...]  # texts that such a template does not contain
    trigger: str  # start of ``opening + call[0]``; text must not contain it (without ``text_before``: begin with it)
    opening: str  # before the first call
    call: tuple[str, str, str]
    between: str  # between two calls
    closing: str  # after the last call
    several: bool  # whether an answer may have several calls
    text_before: bool  # whether text may come before the first call; else an answer is calls or text
    id_prefix: str  # what ids of calls begin with
    id_length: int  # number of letters and digits after the prefix


@lru_cache(maxsize=1)
def tool_formats() -> tuple[ToolFormat, ...]:
    """Return all formats, in the order of their files' names."""
    return tuple(msgspec.json.decode(path.read_bytes(), type=ToolFormat) for path in sorted(FOLDER.glob("*.json")))


def tool_format_of(template: str) -> ToolFormat | None:
    """Return the format in which a chat template writes calls; None if it has no tools, or the format is unknown."""
    for item in tool_formats():
        has = all(text in template for text in item.template)
        if has and not any(text in template for text in item.template_without):
            return item
    return None


def tool_grammar(
    form: ToolFormat, schemas: Mapping[str, dict[str, Any]], must_call: bool, several: bool, trigger_token: int | None
) -> Constraint:
    """Return the constraint on an answer that may, or must, call tools.

    Args:
        schemas: The JSON schemas of the arguments, already checked, by the tools' names.
        must_call: Whether the answer must be a call; otherwise it may also be text. ``several`` allows several calls.
        trigger_token: The special token that spells the trigger; None if the vocabulary has none.
    """
    first = form.opening + form.call[0]
    rest = f"body {_literal(form.call[2], form, trigger_token)}"
    if several and form.several:
        again = _literal(form.between + form.call[0], form, trigger_token)
        rest += f" ({again} body {_literal(form.call[2], form, trigger_token)})*"
    rest += f" {_literal(form.closing, form, trigger_token)}"
    behind = _literal(first.removeprefix(form.trigger), form, trigger_token)
    lines = [f"calls: {behind} {rest}"]
    trigger = _literal(form.trigger, form, trigger_token)
    if must_call:
        lines.insert(0, f"start: {trigger} calls")
    elif not form.text_before:
        lines.insert(0, f"start: TEXT | {trigger} calls")
        lines.append(f"TEXT: /([^{re.escape(form.trigger[0])}]{_ANY})?/")
    elif trigger_token is not None:
        lines.insert(0, f"start: TEXT | TEXT {trigger} calls")
        lines.append(f"TEXT: /{_ANY}/")
    else:
        lines.insert(0, "start: TEXT | head calls")
        lines.append(f"head[lazy]: /{_ANY}{re.escape(form.trigger)}/")
        lines.append(f"TEXT: /{_ANY}/ & ~/{_ANY}{re.escape(form.trigger)}{_ANY}/")
    bodies = [f"{json.dumps(name + form.call[1])} arguments_{index}" for index, name in enumerate(schemas)]
    lines.append("body: " + " | ".join(bodies))
    for index, schema in enumerate(schemas.values()):
        lines.append(f"arguments_{index}: %json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}")
    return Constraint("\n".join(lines))


def _literal(text: str, form: ToolFormat, trigger_token: int | None) -> str:
    """Return a text as literals of the grammar, each trigger replaced by ``trigger_token`` if there is one."""
    if trigger_token is None:
        return json.dumps(text, ensure_ascii=False) if text else ""
    parts = text.split(form.trigger)
    spelled = [json.dumps(part, ensure_ascii=False) if part else "" for part in parts]
    return f" <[{trigger_token}]> ".join(spelled)

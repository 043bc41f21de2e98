"""The chat templates beside a tokenizer, as text: which there are, and which file counts, as transformers 5 has it.

``chat_template.jinja`` is the one called ``default``; ``additional_chat_templates/NAME.jinja`` are others. If there is
any such file, ``chat_template`` of ``tokenizer_config.json`` does not count: a text (``default``), or named ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_tokenizer_file
from lucid_deploy.errors import LucidError
from lucid_deploy.model.tokenizer_files import TEMPLATE, named_templates

DEFAULT, WITH_TOOLS = "default", "tool_use"


@dataclass(frozen=True)
class TemplateText:
    """A template and the file that it comes from, for messages."""

    text: str
    origin: str


def read_chat_templates(directory: Path) -> dict[str, TemplateText] | None:
    """Return the templates of a checkpoint or an artifact by name; None if it has none."""
    named = named_templates(directory)
    if "file" in named:
        raise LucidError(
            f"{named['file']}: transformers takes a further chat template of the name file for the one called default. "
            f"Rename it; the default one is {TEMPLATE}."
        )
    alone = directory / TEMPLATE
    files = {**({DEFAULT: alone} if alone.is_file() else {}), **named}
    if files:
        return {name: TemplateText(_read(path), str(path)) for name, path in files.items()}
    path = directory / CONFIG
    given = read_tokenizer_file(path).get("chat_template")
    return None if given is None else {name: TemplateText(text, str(path)) for name, text in _named(given, path)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise LucidError(f"The chat template in {path} is no text in UTF-8: {error}.") from error


def _named(given: Any, path: Path) -> list[tuple[str, str]]:
    """Return the names and texts of ``chat_template``; of two of the same name the last one counts."""
    items: list[Any] = [(DEFAULT, given)] if not isinstance(given, list | dict) else []
    if isinstance(given, dict):
        items = list(given.items())
    elif isinstance(given, list):
        items = [(item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None) for item in given]
    if all(isinstance(name, str) and isinstance(text, str) for name, text in items):
        return items
    raise LucidError(
        f"The chat template in {path} must be a text, a list of objects with the texts name and template, or an object "
        "of texts by name."
    )

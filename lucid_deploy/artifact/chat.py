"""Chat templates: the Jinja templates beside a tokenizer, rendered in a sandbox as transformers does.

``chat_template.jinja`` is the template called ``default``; ``additional_chat_templates/NAME.jinja`` are others. If
no such file exists, ``chat_template`` of ``tokenizer_config.json`` has the templates: one (``default``) or named ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_tokenizer_file, token_names
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import half_character
from lucid_deploy.model.tokenizer_files import TEMPLATE, named_templates

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

DEFAULT, WITH_TOOLS = "default", "tool_use"


@dataclass(frozen=True)
class TemplateText:
    """A template's text, and the file that it comes from, which error messages name."""

    text: str
    origin: str


def read_chat_templates(directory: Path) -> dict[str, TemplateText] | None:
    """Return the templates of a checkpoint or an artifact by name; None if it has none."""
    named = named_templates(directory)
    if "file" in named:
        raise LucidError(
            f"{named['file']}: transformers uses an additional chat template named file as the default. Rename "
            f"it; the default template is {TEMPLATE}."
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
        raise LucidError(f"The chat template in {path} is not UTF-8 text: {error}.") from error


def _named(given: Any, path: Path) -> list[tuple[str, str]]:
    """Return the names and texts in ``chat_template``; if a name comes twice, the caller keeps its last text."""
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


# transformers appends this mark to the message to continue, to find its end in the rendered text.
_END = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A compiled template (its text is ``source``) and the special tokens it may name.

    A template is a program that came with the model, so it is compiled and rendered only in a ``BoundedProcess``.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], origin: str) -> None:
        import jinja2

        self.source = source
        self._special_tokens = special_tokens
        try:
            self._template: Template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise LucidError(f"The chat template in {origin} is not valid: {error}.") from error

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, continue_last: bool = False
    ) -> str:
        """Render a chat as text that ends with the opening of the model's answer.

        With ``continue_last`` the last message begins the answer, and the text ends where that message ends.
        """
        import jinja2

        # Python exceptions that a template's code may raise, beside Jinja's.
        faults = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
        marked = self._marked(messages) if continue_last else messages
        try:
            text = self._template.render(
                messages=marked,
                tools=tools,
                documents=None,  # passed, as in transformers: templates test "documents is none"
                add_generation_prompt=not continue_last,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, *faults) as error:
            raise LucidError(f"The model's chat template refuses these messages: {error}.") from error
        if continue_last:
            text = _cut_at_mark(text, messages[-1]["content"])
        if (place := half_character(text)) is not None:
            raise LucidError(f"The model's chat template wrote half a character (a lone surrogate) at {place}.")
        return text

    def _marked(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append the end mark to the last message, which must be text that the template reads."""
        content = messages[-1].get("content")
        if not isinstance(content, str):
            raise LucidError("The last message has no text, so the answer cannot go on from it.")
        if "content" not in self.source:
            raise LucidError("The model's chat template reads no content, so the answer cannot go on from a message.")
        return [*messages[:-1], {**messages[-1], "content": content + _END}]


def _cut_at_mark(text: str, content: str) -> str:
    """Cut a rendered chat where its last message ends; the template may have stripped that message."""
    mark = _END.strip()
    if content.strip() not in text or mark not in text:
        raise LucidError("The model's chat template changes the last message, so the answer cannot go on from it.")
    place = text.rindex(mark)
    kept = text[:place]
    return kept if text.startswith(_END, place) else kept.rstrip()


class ChatTemplates:
    """The templates of a model; whether a chat has tools decides which one renders it, as in transformers."""

    def __init__(self, texts: dict[str, TemplateText], special_tokens: dict[str, str]) -> None:
        self._names = sorted(texts)
        self._templates = {
            name: ChatTemplate(texts[name].text, special_tokens, texts[name].origin)
            for name in (DEFAULT, WITH_TOOLS)  # others are never used
            if name in texts
        }

    def chosen(self, tools: bool = False) -> ChatTemplate:
        """Return the template for chats with or without tools; with tools that is ``tool_use`` if there is one."""
        names = (WITH_TOOLS, DEFAULT) if tools else (DEFAULT,)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        raise LucidError(
            f"Chats {'with' if tools else 'without'} tools need a chat template that is called {' or '.join(names)}; "
            f"the model has {', '.join(self._names) or 'none'}. Rename or add one in the checkpoint and export again."
        )


def load_chat_templates(directory: Path) -> ChatTemplates | None:
    """Return the templates of an artifact, or None if it has none.

    Templates see the special tokens that ``tokenizer_config.json`` names.
    """
    texts = read_chat_templates(directory)
    if texts is None:
        return None
    return ChatTemplates(texts, token_names(directory))


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the Jinja environment that templates expect: trimmed blocks, loop controls and transformers' helpers."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _generation_tag() -> Any:
    """Return the extension for ``{% generation %}``, which marks answers for training; it has no effect here."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 (the interface of Extension)

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return GenerationTag

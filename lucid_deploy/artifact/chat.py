"""Chat templates: the Jinja templates that lie beside a tokenizer, rendered in a sandbox as transformers does."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.chat_templates import DEFAULT, WITH_TOOLS, TemplateText, read_chat_templates
from lucid_deploy.artifact.tokenizer_settings import padding_token, read_settings
from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.json_fields import half_character

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# What transformers puts behind the message to be gone on with, to find its end again in the rendered text.
_END = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A compiled template and the special tokens it may name.

    Attributes:
        source: The template's text.

    A template is a program that came with the model: compile and render it only in a bounded process.

    Args:
        source: The template's text.
        special_tokens: Such as ``{"bos_token": "<s>"}``.
        origin: Where it comes from, for messages.
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
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, go_on: bool = False
    ) -> str:
        """Return the chat as text, with the opening of the model's answer.

        Args:
            messages: Of the chat.
            tools: That may be called; None if there are none.
            go_on: The last message is the beginning of the answer: the text ends where that ends.
        """
        import jinja2

        # Not errors of ours.
        faults = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
        shown = self._marked(messages) if go_on else messages
        try:
            text = self._template.render(
                messages=shown,
                tools=tools,
                documents=None,  # defined, as in transformers: templates ask "is none"
                add_generation_prompt=not go_on,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, *faults) as error:
            raise LucidError(f"The model's chat template refuses these messages: {error}.") from error
        if go_on:
            text = _up_to_the_mark(text, messages[-1]["content"])
        if (place := half_character(text)) is not None:
            raise LucidError(f"The model's chat template wrote half a character (a lone surrogate) at {place}.")
        return text

    def _marked(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages with a mark behind the last one, which must be text that the template may read."""
        content = messages[-1].get("content")
        if not isinstance(content, str):
            raise LucidError("The last message has no text, so the answer cannot go on from it.")
        if "content" not in self.source:
            raise LucidError("The model's chat template reads no content, so the answer cannot go on from a message.")
        return [*messages[:-1], {**messages[-1], "content": content + _END}]


def _up_to_the_mark(text: str, content: str) -> str:
    """Cut a rendered chat where its last message ends, of which a template may have stripped the ends."""
    mark = _END.strip()
    if content.strip() not in text or mark not in text:
        raise LucidError("The model's chat template changes the last message, so the answer cannot go on from it.")
    place = text.rindex(mark)
    kept = text[:place]
    return kept if text.startswith(_END, place) else kept.rstrip()


class ChatTemplates:
    """The templates of a model, of which a chat's tools decide which one it is rendered with, as in transformers.

    Args:
        texts: The templates by name.
        special_tokens: Such as ``{"bos_token": "<s>"}``.
    """

    def __init__(self, texts: dict[str, TemplateText], special_tokens: dict[str, str]) -> None:
        self._names = sorted(texts)
        self._templates = {
            name: ChatTemplate(texts[name].text, special_tokens, texts[name].origin)
            for name in (DEFAULT, WITH_TOOLS)  # nobody asks for others
            if name in texts
        }

    def chosen(self, tools: bool = False) -> ChatTemplate:
        """Return the template for chats with or without tools: ``tool_use`` for the former if there is one."""
        names = (WITH_TOOLS, DEFAULT) if tools else (DEFAULT,)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        raise LucidError(
            f"Chats {'with' if tools else 'without'} tools need a chat template that is called {' or '.join(names)}; "
            f"those of the model are called {', '.join(self._names) or 'nothing: its list is empty'}. Rename one in "
            "the checkpoint and export again."
        )


def load_chat_templates(directory: Path) -> ChatTemplates | None:
    """Return the templates of an artifact, or None if it has none.

    Which files count says :mod:`~lucid_deploy.artifact.chat_templates`. Their special tokens are those that
    ``tokenizer_config.json`` and ``special_tokens_map.json`` name, as transformers reads them.
    """
    texts = read_chat_templates(directory)
    if texts is None:
        return None
    try:
        import jinja2  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise missing_extra("jinja2", "serve", "render chat templates") from error
    settings = read_settings(directory)
    # tokenizer.json is large: it is read only if a template may ask for what it alone can say.
    asked = any("pad_token" in template.text for template in texts.values()) and "pad_token" not in settings.standard
    return ChatTemplates(texts, settings.texts(padding_token(directory) if asked else None))


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that templates are written for: block trimming, loop controls, three helpers."""
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
    environment.globals["namespace"] = _namespace()
    return environment


def _namespace() -> Any:
    """Return a ``namespace`` that takes no hidden names: the sandbox reads none back, and conditions would be false."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace keeps no name that begins with an underscore, such as {name!r}")

    class ReadableNamespace(Namespace):
        def __init__(*given: Any, **named: Any) -> None:  # so that a name may be self
            values = dict(*given[1:], **named)
            for name in values:
                check(name)
            Namespace.__init__(given[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    return ReadableNamespace


def _generation_tag() -> Any:
    """Return the extension for ``{% generation %}``, which marks answers for training and has no effect here."""
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

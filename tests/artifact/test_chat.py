"""Chat templates: as in transformers, and in a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lucid_deploy.artifact.chat import ChatTemplate, load_chat_templates, read_chat_templates
from lucid_deploy.errors import LucidError
from tests.serving.serving_tools import TEMPLATE

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "1 < 2 & 'é'?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
TEMPLATES = [
    TEMPLATE,
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{%- set ns = namespace(count=0) -%}\n{%- for m in messages %}\n"
    "    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {%- set ns.count = ns.count + 1 %}\n{{ ns.count }}: {{ m | tojson }}\n{% endfor %}{{ ns.count }}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}[{{ m.content.strip().upper() }}]{% endif %}{% endfor %}",
    "{{ messages | tojson(false, none, (',', ':'), true) }}{{ messages | tojson(indent=2, ensure_ascii=true) }}",
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}",
    "{{ documents is defined }} {{ documents is none }} {{ tools is none }}",
    "{% if tools %}tools{% endif %}{% if messages[0].name is defined %}named{% else %}nameless{% endif %}",
]


def settings(directory: Path, **more: Any) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **more}))
    return directory


def transformers_tokenizer(source: str) -> Any:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source)


@pytest.mark.parametrize("source", TEMPLATES)
def test_a_template_renders_as_in_transformers(source: str, tmp_path: Path) -> None:
    theirs = transformers_tokenizer(source)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ours = load_chat_templates(settings(tmp_path, chat_template=source))
    assert ours is not None
    assert ours.chosen().render(MESSAGES) == expected


CONTINUED = [
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} end of the turn{% endfor %}",
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} end of the turn{{ eos_token }}{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}Signed: the assistant",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}{{ m.content }} {{ m.content | length > 9 }}{% endfor %}",
]


@pytest.mark.parametrize("content", ["t", "", "assistant", " the ", "turn\n", "CONTINUE_FINAL_MESSAGE_TAG ", "é 🦊"])
@pytest.mark.parametrize("source", CONTINUED)
def test_a_last_message_is_continued_as_in_transformers(source: str, content: str) -> None:
    messages = [{"role": "user", "content": "t"}, {"role": "assistant", "content": content}]
    expected = transformers_tokenizer(source).apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert ChatTemplate(source, {"eos_token": "</s>"}, "a test").render(messages, continue_last=True) == expected
    assert messages[-1]["content"] == content  # is not changed


@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        ("{{ messages | tojson }}", "t", "reads no content"),
        ("{{ messages[0].content }}", "t", "changes the last message"),
        ("{{ messages[-1].content | upper }}", "t", "changes the last message"),
        ("{{ messages[-1].content }}", None, "has no text"),
        ("{{ messages[-1].content }}", [{"type": "text", "text": "t"}], "has no text"),
    ],
)
def test_a_last_message_that_cannot_be_continued_is_refused(source: str, content: Any, said: str) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    with pytest.raises(LucidError, match=f"{said}.*cannot go on"):
        ChatTemplate(source, {}, "a test").render(messages, continue_last=True)


TOOLS = [{"type": "function", "function": {"name": "time-now", "parameters": {"type": "object"}}}]
PLAIN = "plain{% for m in messages %}{{ m.content }}{% endfor %}{{ tools is none }}"
WITH_TOOLS = "tools{{ bos_token }}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ messages[0].content }}"
OTHER = "{{ rag }}"
EVERY = {"default": PLAIN, "tool_use": WITH_TOOLS, "rag": OTHER}


def listed(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "template": EVERY[name]} for name in names]


def outcome(render: Callable[[], str]) -> str:
    """Return the text, or the names that a refusal lists."""
    try:
        return render()
    except (LucidError, ValueError) as error:
        assert "Rename or add one in the checkpoint" in str(error) or "no default specified" in str(error), error
        return ", ".join(sorted(name for name in EVERY if re.search(f"called .*{name}[,.]|{name!r}", str(error))))


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize(
    ("given", "alone", "folder"),
    [
        (listed("default", "tool_use", "rag"), None, {}),
        (listed("tool_use", "rag"), None, {}),
        ([], None, {}),
        ([*listed("default"), {"name": "default", "template": "the last one"}], None, {}),
        (listed("default", "tool_use"), "alone", {}),
        (listed("default", "tool_use"), "alone", {"tool_use": WITH_TOOLS}),
        (listed("default"), None, {"tool_use": WITH_TOOLS}),
        (None, "alone", {"default": "further"}),
        (None, "alone", {"default": "further", "tool_use": WITH_TOOLS, "rag": "{% broken and never rendered"}),
    ],
)
def test_the_template_is_the_one_that_transformers_chooses(
    given: Any, alone: str | None, folder: dict[str, str], tools: Any, tmp_path: Path
) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    settings(tmp_path, chat_template=given, bos_token="<s>", tokenizer_class="TokenizersBackend")
    if alone is not None:
        (tmp_path / "chat_template.jinja").write_text(alone)
    for name, text in folder.items():
        (tmp_path / "additional_chat_templates").mkdir(exist_ok=True)
        (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    theirs, ours = AutoTokenizer.from_pretrained(str(tmp_path)), load_chat_templates(tmp_path)
    assert ours is not None
    expected = outcome(lambda: theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False))
    assert outcome(lambda: ours.chosen(tools=tools is not None).render(MESSAGES, tools)) == expected


def test_without_a_template_none_is_loaded(tmp_path: Path) -> None:
    assert load_chat_templates(tmp_path) is None
    assert load_chat_templates(settings(tmp_path)) is None
    assert load_chat_templates(settings(tmp_path, chat_template=None)) is None


@pytest.mark.parametrize("source", ["{% for", "{{ ", 7, {"a": 1}, {"tool_use": "{% for"}, ["x"], [{"name": "x"}]])
def test_an_invalid_template_is_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"chat template in .*tokenizer_config\.json"):
        load_chat_templates(settings(tmp_path, chat_template=source))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.undefined.more }}",
        "{{ 'x' * 5 + 5 }}",
        "{{ raise_exception('no') }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 // (messages | length - messages | length) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a b'.split()[7].upper() }}",
    ],
)
def test_a_template_that_fails_or_leaves_the_sandbox_is_refused(source: str) -> None:
    with pytest.raises(LucidError, match="chat template refuses these messages"):
        ChatTemplate(source, {}, "a test").render(MESSAGES)


def write(directory: Path, given: Any = None, **files: str) -> Path:
    """Write ``chat_template`` of the configuration, and files of templates; ``alone``: ``chat_template.jinja``."""
    config = {"tokenizer_class": "TokenizersBackend", "chat_template": given}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        path = directory / ("chat_template.jinja" if name == "alone" else f"additional_chat_templates/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, newline="")
    return directory


def test_a_name_that_transformers_uses_as_the_default_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, alone="a", file="b")
    assert AutoTokenizer.from_pretrained(str(tmp_path)).chat_template == "b"
    with pytest.raises(LucidError, match=r"additional_chat_templates/file\.jinja: transformers uses .*Rename it"):
        read_chat_templates(tmp_path)


@pytest.mark.parametrize("given", [7, False, ["a"], [{"name": "a"}], [{"name": 7, "template": "a"}], {"a": None}])
def test_what_is_no_template_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"chat template in .*tokenizer_config\.json must be a text, a list"):
        read_chat_templates(write(tmp_path, given))

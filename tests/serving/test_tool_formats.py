"""The files of formats, and which chat template is of which."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.artifact.chat import ChatTemplate
from lucid_deploy.errors import LucidError
from lucid_deploy.serving.tool_formats import FOLDER, ToolFormat, tool_format_of, tool_formats, with_tools
from tests.serving.tool_examples import TEMPLATES, WEATHER


def test_every_file_is_a_format_of_its_name() -> None:
    assert [item.name for item in tool_formats()] == sorted(path.stem for path in FOLDER.iterdir())
    for item in tool_formats():
        assert (item.opening + item.call[0]).startswith(item.trigger)
        assert item.text_before or not item.opening


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_of_its_format(name: str) -> None:
    found = tool_format_of(TEMPLATES[name])
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if tools %}<tool_call>\n<function=name>{% endif %}",
        "{% if tools %}[TOOL_CALLS]name[ARGS]{}{% endif %}",
        "<tool_call>",
    ],
)
def test_templates_without_tools_or_of_unknown_forms(template: str) -> None:
    assert tool_format_of(template) is None


PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "1"},
    {"role": "tool", "content": "2 degrees", "tool_call_id": "1"},
]


@pytest.mark.parametrize("form", tool_formats(), ids=lambda form: form.name)
def test_a_template_without_tools_is_given_a_form(form: ToolFormat) -> None:
    changed = with_tools(PLAIN, form)
    assert tool_format_of(changed) == form
    template = ChatTemplate(changed, {}, "test")
    assert template.render(CHAT[:2]) == "<system>Be brief.<user>weather?"
    for chat in (CHAT, CHAT[1:]):
        shown = template.render(chat, [WEATHER])
        assert shown.startswith("<system>") and shown.count("<system>") == 1 and '"name": "get_weather"' in shown
        name, arguments, end = form.call
        call = f'{form.opening}{name}get_weather{arguments}{{"city": "Oslo"}}{end}{form.closing}'
        returned = "The function returned:\n"
        assert shown.endswith(f"<user>weather?<assistant>{call}<user>{returned}rain\n{returned}2 degrees")


def test_a_template_that_has_tools_keeps_them() -> None:
    with pytest.raises(LucidError, match="has tools already, as hermes"):
        with_tools(TEMPLATES["hermes"], tool_formats()[0])

"""The files of tool formats, and which format a chat template has."""

from __future__ import annotations

import pytest

from lucid_deploy.serving.tool_formats import FOLDER, tool_format_of, tool_formats
from tests.serving.tool_examples import TEMPLATES


def test_every_file_is_a_format_with_the_file_s_name() -> None:
    assert [item.name for item in tool_formats()] == sorted(path.stem for path in FOLDER.iterdir())
    for item in tool_formats():
        assert (item.opening + item.call[0]).startswith(item.trigger)
        assert item.text_before or not item.opening


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_of_a_template_is_recognized(name: str) -> None:
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
def test_templates_without_tools_or_with_unknown_formats_have_none(template: str) -> None:
    assert tool_format_of(template) is None

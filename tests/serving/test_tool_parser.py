"""The parser splits answers into content and calls, however their text is cut into pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lucid_deploy.serving.tool_formats import ToolFormat, tool_formats
from lucid_deploy.serving.tool_parser import ToolCallParser

FORMS = {item.name: item for item in tool_formats()}
TRICKY = {"city": 'a "quoted" } ] \\ {"x": [', "n": [1, {"deep": {}}], "é": "🦊\n"}
CALLS: list[tuple[str, dict[str, Any]]] = [("get_weather", TRICKY), ("time-now", {})]


def written(form: ToolFormat, calls: list[tuple[str, dict[str, Any]]]) -> str:
    parts = [
        form.call[0] + name + form.call[1] + json.dumps(given, ensure_ascii=False) + form.call[2]
        for name, given in calls
    ]
    return form.opening + form.between.join(parts) + form.closing


def parsed(form: ToolFormat, text: str, cut: int) -> tuple[str, list[tuple[str, str]], list[str]]:
    parser, content, found, ids = ToolCallParser(form), "", [], []
    deltas = [parser.push(text[start : start + cut]) for start in range(0, len(text), cut)] + [parser.finish()]
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            index, called = call["index"], call["function"]
            if "id" in call:
                assert index == len(found)
                found.append((called["name"], ""))
                ids.append(call["id"])
            found[index] = (found[index][0], found[index][1] + called["arguments"])
    assert parser.calls == len(found)
    return content, found, ids


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", FORMS)
def test_calls_of_every_format_are_parsed(name: str, cut: int) -> None:
    form = FORMS[name]
    calls = CALLS if form.several else CALLS[:1]
    before = "I ask.\n<tool [TOOL " if form.text_before else ""
    content, found, ids = parsed(form, before + written(form, calls), cut)
    assert content == before
    assert [(called, json.loads(arguments)) for called, arguments in found] == calls
    assert len(set(ids)) == len(ids)
    assert all(item.startswith(form.id_prefix) and len(item) == len(form.id_prefix) + form.id_length for item in ids)


@pytest.mark.parametrize("cut", [1, 5, 1000])
@pytest.mark.parametrize("name", FORMS)
def test_text_alone_is_content(name: str, cut: int) -> None:
    for text in ("no call {", "<tool_cal", "", 'say {"name": "x'):
        assert parsed(FORMS[name], text, cut) == (text, [], [])


@pytest.mark.parametrize("name", FORMS)
def test_a_call_that_is_cut_keeps_its_beginning(name: str) -> None:
    form = FORMS[name]
    text = written(form, CALLS[:1])
    end = text.index("quoted") + 3
    content, found, _ = parsed(form, text[:end], 4)
    assert (content, found) == ("", [("get_weather", '{"city": "a \\"quo')])


@pytest.mark.parametrize("name", FORMS)
def test_calls_are_whole_from_the_end_of_their_arguments_on(name: str) -> None:
    form = FORMS[name]
    parser, text = ToolCallParser(form), written(form, CALLS[:1])
    end = len(text) - len(form.call[2] + form.closing)
    whole = []
    for sign in text:
        parser.push(sign)
        whole.append(parser.has_whole_calls)
    assert whole == [False] * (end - 1) + [True] * (len(text) - end + 1)


def test_a_second_call_that_is_cut_is_not_whole() -> None:
    parser, text = ToolCallParser(FORMS["hermes"]), written(FORMS["hermes"], CALLS[::-1])
    parser.push(text[: text.index("quoted")])
    assert parser.calls == 2 and not parser.has_whole_calls

"""Random tokens that the grammar allows give calls whose arguments follow the tools' schemas, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.constraint import Constraint
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.text_stream import AnswerText
from lucid_deploy.serving.tool_formats import ToolFormat, tool_formats, tool_grammar
from lucid_deploy.serving.tool_parser import ToolCallParser
from tests.generation.guided_walks import END, SIZE, tokenizer_of, walk
from tests.serving.tool_examples import WEATHER

FORMS = {item.name: item for item in tool_formats()}
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": WEATHER["function"]["parameters"],
    "time-now": {"type": "object", "properties": {}, "additionalProperties": False},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return tokenizer_of("byte-level bpe", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def guides(tokenizer: TextTokenizer) -> GuideFactory:
    return GuideFactory(tokenizer, SIZE, [END])


def calls_of(form: ToolFormat, text: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    parser, found = ToolCallParser(form), []
    delta = parser.push(text)
    arguments = [""] * parser.calls
    for call in delta.get("tool_calls", ()):
        arguments[call["index"]] += call["function"]["arguments"]
        if "id" in call:
            found.append(call["function"]["name"])
    content = delta.get("content", "")
    return content, [(name, json.loads(given)) for name, given in zip(found, arguments, strict=True)]


@pytest.mark.parametrize("name", FORMS)
def test_required_calls_follow_the_schemas(name: str, tokenizer: TextTokenizer, guides: GuideFactory) -> None:
    seen: set[str] = set()
    for several in (True, False):
        constraint = tool_grammar(FORMS[name], SCHEMAS, True, several, None)
        for seed in range(4):
            text, complete = walk(guides, tokenizer, constraint, seed)
            if not complete:
                continue
            content, calls = calls_of(FORMS[name], text)
            assert content == "" and calls and (several or len(calls) == 1)
            for called, given in calls:
                jsonschema.validate(given, SCHEMAS[called])
                seen.add(called)
    assert seen == set(SCHEMAS)


def follow(guides: GuideFactory, tokenizer: TextTokenizer, constraint: Constraint, text: str) -> bool | None:
    """Return whether an answer may end after a text; None if no answer may begin with the text."""
    guide = guides.open(constraint).result()
    for sign in text:
        allowed = guide.allowed()
        fitting = [] if allowed is None else [t for t in np.flatnonzero(allowed) if tokenizer.decode([int(t)]) == sign]
        if not fitting:
            return None
        guide.advance(int(fitting[0]))
    allowed = guide.allowed()
    return allowed is None or bool(allowed[END])


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_may_be_text_or_calls(name: str, tokenizer: TextTokenizer, guides: GuideFactory) -> None:
    form = FORMS[name]
    constraint = tool_grammar(form, SCHEMAS, False, True, None)
    call = form.opening + form.call[0] + "time-now" + form.call[1] + "{}" + form.call[2] + form.closing
    wrong = form.opening + form.call[0] + "time-then" + form.call[1]
    for text, expected in (("Hello.", True), ("", True), (call, True), (call[:-1], False), (wrong, None)):
        assert follow(guides, tokenizer, constraint, text) is expected, text
    if form.text_before:
        assert follow(guides, tokenizer, constraint, "I ask. " + call) is True
        assert follow(guides, tokenizer, constraint, "I ask. " + wrong) is None
        assert follow(guides, tokenizer, constraint, "so " + form.trigger[:-1]) is True
    must = tool_grammar(form, SCHEMAS, True, True, None)
    assert follow(guides, tokenizer, must, "Hello.") is None and follow(guides, tokenizer, must, call) is True


def test_a_special_token_can_be_the_trigger(tmp_path: Path) -> None:
    tokenizer_of("byte-level bpe", tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.add_special_tokens(["[TOOL_CALLS]"])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer, form = TextTokenizer(tmp_path), FORMS["mistral"]
    token = tokenizer.special_id("[TOOL_CALLS]")
    assert token is not None and tokenizer.special_id("fox") is None
    guide = GuideFactory(tokenizer, SIZE, [END]).open(tool_grammar(form, SCHEMAS, False, True, token)).result()
    before, behind = tokenizer.encode("So "), tokenizer.encode(' [{"name": "time-now", "arguments": {}}]')
    answer, text = AnswerText(tokenizer, shown=[token]), ""
    for item in [*before, token, *behind]:
        allowed = guide.allowed()
        assert allowed is not None and allowed[item]
        guide.advance(item)
        text += answer.push(item)
    text += answer.finish()
    assert guide.allowed() is None
    assert calls_of(form, text) == ("So ", [("time-now", {})])


def test_no_other_token_stands_for_the_trigger(tmp_path: Path) -> None:
    """Neither another special token nor byte 0xFF, which no text has and llguidance marks special tokens with."""
    tokenizer_of("byte-level bpe", tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path)
    token, byte = tokenizer.special_id("<tool_call>"), raw.token_to_id("ÿ")  # 0xFF in the alphabet of bytes
    assert token is not None and byte is not None
    guides = GuideFactory(tokenizer, SIZE, [END])
    must = guides.open(tool_grammar(FORMS["hermes"], SCHEMAS, True, True, token)).result().allowed()
    assert must is not None and list(np.flatnonzero(must)) == [token]
    may = guides.open(tool_grammar(FORMS["hermes"], SCHEMAS, False, True, token)).result().allowed()
    assert may is not None and not may[byte]
    assert {int(i) for i in np.flatnonzero(may) if tokenizer.is_special(int(i))} == {token, END}

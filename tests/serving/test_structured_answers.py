"""Answers that follow a schema, an expression or a grammar, through the server and OpenAI's client."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openai

from tests.serving.serving_tools import MODEL

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"enum": [1, 22, 333]}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
USER: Any = [{"role": "user", "content": "keys"}]
SAMPLED: dict[str, Any] = {"model": MODEL, "temperature": 1.5, "seed": 5, "max_tokens": 150}


def test_a_chat_follows_a_schema_whole_and_streamed(client: openai.OpenAI) -> None:
    answers = client.chat.completions.create(messages=USER, response_format=FORMAT, n=3, **SAMPLED)
    for choice in answers.choices:
        assert choice.finish_reason == "stop" and choice.message.content
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    assert len({choice.message.content for choice in answers.choices}) == 3  # seeds count up
    pieces = ["", "", ""]
    for chunk in client.chat.completions.create(messages=USER, response_format=FORMAT, n=3, stream=True, **SAMPLED):
        for part in chunk.choices:
            pieces[part.index] += part.delta.content or ""
    assert pieces == [choice.message.content for choice in answers.choices]


def test_answers_follow_json_objects_and_guided_fields(client: openai.OpenAI) -> None:
    def text(**fields: Any) -> str:
        choice = client.completions.create(prompt="keys", **SAMPLED, extra_body=fields).choices[0]
        assert choice.finish_reason == "stop"
        return choice.text

    jsonschema.validate(json.loads(text(guided_json=SCHEMA)), SCHEMA)
    jsonschema.validate(json.loads(text(guided_json=json.dumps(SCHEMA))), SCHEMA)
    jsonschema.validate(json.loads(text(response_format=FORMAT)), SCHEMA)
    assert re.fullmatch("(ab|c)[0-9]{2}", text(guided_regex="(ab|c)[0-9]{2}"))
    assert text(guided_choice=["left", "right"]) in ("left", "right")
    assert text(guided_grammar='root ::= "yes" | "no"') in ("yes", "no")
    bias = {str(token): 20 for token in (94, 91)}  # favours the ends of strings and objects, as an object may be long
    whole = client.chat.completions.create(
        messages=USER, response_format={"type": "json_object"}, logit_bias=bias, **SAMPLED
    ).choices[0]
    assert whole.message.content is not None and whole.message.content.lstrip().startswith("{")
    if whole.finish_reason == "stop":
        assert isinstance(json.loads(whole.message.content), dict)


def test_an_answer_that_is_cut_says_so_and_a_stop_text_still_stops(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(messages=USER, response_format=FORMAT, **{**SAMPLED, "max_tokens": 3})
    assert cut.choices[0].finish_reason == "length"
    stopped = client.chat.completions.create(messages=USER, response_format=FORMAT, stop='"name', **SAMPLED)
    assert stopped.choices[0].finish_reason == "stop" and "name" not in (stopped.choices[0].message.content or "")


def test_log_probabilities_are_of_the_whole_distribution(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=USER, response_format=FORMAT, logprobs=True, top_logprobs=3, **SAMPLED
    ).choices[0]
    assert answer.logprobs is not None and answer.logprobs.content is not None
    assert b"".join(bytes(item.bytes or ()) for item in answer.logprobs.content).decode() == answer.message.content
    assert all(item.logprob < -1 for item in answer.logprobs.content[:1])
    tops = [top.token for item in answer.logprobs.content for top in item.top_logprobs]
    assert any(top not in (answer.message.content or "") for top in tops)

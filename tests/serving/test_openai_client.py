"""The official client against real servers: the tokens are those of `lucid-deploy run`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.serving_tools import MODEL, PROMPT, Reference, Server

LONG: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
ANIMALS = ["fox", "owl", "bear"]


def prompts(count: int) -> list[str]:
    """Return prompts of different lengths, with repeated words."""
    entry = "fox has red lamp, owl has blue cup, bear has green key"
    return [", ".join([entry] * (1 + i % 5)) + f". {ANIMALS[i % 3]} has" for i in range(count)]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_greedy_completion_is_what_run_gives(client: openai.OpenAI, reference: Reference) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0, max_tokens=60, **LONG)
    assert answer.choices[0].text == reference.text(PROMPT, 60, eos=False)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (18, 60, 78)


def test_a_stream_has_the_same_text_and_ends_with_counts(client: openai.OpenAI, reference: Reference) -> None:
    options = {"include_usage": True}
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, temperature=0, max_tokens=30, stream=True, stream_options=options, **LONG
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == reference.text(PROMPT, 30, eos=False)
    assert len(chunks) > 20
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 30
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_is_the_template_and_the_model(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "fox has red lamp,"},
        {"role": "user", "content": [{"type": "text", "text": "owl has blue cup, bear has "}]},
        {"role": "user", "content": [{"type": "text", "text": "green "}, {"type": "text", "text": "key. owl has"}]},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert answer.object == "chat.completion"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("blue cup", "stop")
    assert answer.usage is not None and answer.usage.prompt_tokens == 18
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "blue cup"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_prompts_as_texts_and_as_token_ids(client: openai.OpenAI, reference: Reference) -> None:
    texts = prompts(3)
    ids = [reference.tokenizer.encode(text) for text in texts]
    expected = [reference.text(text, 8, eos=False) for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8, **LONG)
        assert [choice.text for choice in answer.choices] == expected
        assert answer.usage is not None and answer.usage.prompt_tokens == sum(map(len, ids))
    single = client.completions.create(model=MODEL, prompt=ids[1], temperature=0, max_tokens=8, **LONG)
    assert [choice.text for choice in single.choices] == expected[1:2]


def test_sixteen_clients_at_once_get_what_each_gets_alone(server: Server, reference: Reference) -> None:
    texts = prompts(16)
    counts = [10 + 3 * i for i in range(16)]
    heat = [0.0 if i < 6 else 1.2 for i in range(16)]  # greedy, and sampled, whose text is more varied

    async def one(client: openai.AsyncOpenAI, i: int) -> str:
        options: dict[str, Any] = {"model": MODEL, "prompt": texts[i], "max_tokens": counts[i], **LONG}
        options |= {"temperature": heat[i], "seed": i}
        if i % 2:
            return str((await client.completions.create(**options)).choices[0].text)
        chunks = await client.completions.create(**options, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def everyone() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(16)))

    expected = [
        reference.text(texts[i], counts[i], eos=False, temperature=heat[i], seed=i if heat[i] else None)
        for i in range(16)
    ]
    assert len(set(expected)) == 16
    assert asyncio.run(everyone()) == expected


def test_a_response_is_the_chat_of_the_same_messages(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=PROMPT, temperature=0, store=False)
    assert (answer.output_text, answer.status, answer.model) == ("blue cup", "completed", MODEL)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (18, 2, 20)
    first, _, rest = PROMPT.partition(", ")
    asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": rest}]}]
    split = client.responses.create(model=MODEL, instructions=f"{first},", input=asked, temperature=0)
    assert (split.output_text, split.instructions) == ("blue cup", f"{first},")
    more: Any = [{"role": "user", "content": PROMPT}, *answer.output, {"role": "user", "content": ". bear has"}]
    assert client.responses.create(model=MODEL, input=more, temperature=0).output_text == "green key"

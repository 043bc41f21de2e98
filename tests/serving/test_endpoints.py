"""Answers made of an engine's events, whole and streamed, and what ends them early."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.errors import ApiError, queue_full
from lucid_deploy.serving.front import Service
from lucid_deploy.serving.security import ApiKeys
from tests.serving.reader_tools import completion
from tests.serving.stand_ins import ScriptedBackend, client, service

GOOD: list[list[TextPiece]] = [[TextPiece(0, "a", 1)], [TextPiece(0, "", 1)], [TextPiece(0, "bé", 1, reason="stop")]]
HEADERS = {"Content-Type": "application/json"}


def ask(
    folder: Path, *script: Any, change: Any = None, prompt: Any = "w1 w2", **fields: Any
) -> tuple[Any, ScriptedBackend]:
    """Send a completion to an application whose engine does what the script says."""
    backend = ScriptedBackend(*script)

    async def run() -> Any:
        made = service(folder, backend)
        async with client(made) as http:
            if change is not None:
                change(made)
            answer = await http.post("/v1/completions", content=completion(prompt, **fields), headers=HEADERS)
            assert made.busy.total() == 0
            assert made.body_memory == 0
            return answer

    return asyncio.run(run()), backend


def events_of(answer: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_stream_has_chunks_counts_and_an_end(tmp_path: Path) -> None:
    answer, backend = ask(tmp_path, *GOOD, stream=True, stream_options={"include_usage": True})
    *chunks, counts, done = events_of(answer)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "bé", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (counts["usage"]["completion_tokens"], done) == (3, "[DONE]")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert backend.closed == 1


def test_the_events_of_a_response_come_in_their_order(tmp_path: Path) -> None:
    async def run() -> Any:
        async with client(service(tmp_path, ScriptedBackend(*GOOD))) as http:
            return await http.post("/v1/responses", json={"model": "m", "input": "w1", "stream": True})

    events = [json.loads(line.partition("data: ")[2]) for line in asyncio.run(run()).text.split("\n\n") if line]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]


@pytest.mark.parametrize(("reused", "counted"), [(0, 0), (127, 0), (128, 128), (400, 384)])
def test_reused_tokens_are_counted_in_steps_and_once_for_each_prompt(reused: int, counted: int, tmp_path: Path) -> None:
    ends: list[list[TextPiece]] = [
        [TextPiece(row, "", 0, reason="stop", reused=reused if row % 2 == 0 else 999)] for row in range(4)
    ]
    prompts = ["w1 w2", "w3"]
    answer, _ = ask(tmp_path, *ends, n=2, prompt=prompts)
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * counted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error", [queue_full(3), ApiError(400, "too long"), ApiError(500, "not finite", "engine_error")]
)
def test_errors_before_anything_was_sent_have_a_status(error: ApiError, stream: bool, tmp_path: Path) -> None:
    answer, backend = ask(tmp_path, error, stream=stream)
    assert (answer.status_code, answer.json()) == (error.status, error.body())
    assert answer.headers.get("Retry-After") == error.headers.get("Retry-After")
    assert backend.closed == 1


def test_an_error_within_a_stream_is_its_last_event(tmp_path: Path) -> None:
    answer, backend = ask(tmp_path, GOOD[0], ApiError(500, "broken", "engine_error"), stream=True)
    assert answer.status_code == 200
    first, last = events_of(answer)
    assert first["choices"][0]["text"] == "a"
    assert last["error"]["code"] == "engine_error"
    assert backend.closed == 1


def test_times_of_tokens_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.serving.app.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    found: list[Service] = []
    script = [[TextPiece(row, "a", 1)] for row in (0, 1, 1, 0)]
    ask(tmp_path, *script, [TextPiece(row, "", 0, reason="stop") for row in (0, 1)], n=2, change=found.append)
    lines = found[0].metrics.text().decode().splitlines()
    counts = {name: float(value) for name, value in (line.split() for line in lines if " " in line and line[0] != "#")}
    # The second generation's first token is not the request's first, and no token of its own came before.
    assert counts["lucid_time_to_first_token_seconds_count"] == 1
    assert counts["lucid_time_between_tokens_seconds_count"] == 2
    assert counts["lucid_time_between_tokens_seconds_sum"] == 1 + 3  # a tick for each token
    assert counts["lucid_generated_tokens_total"] == 4


def test_one_of_two_keys_gets_at_most_half_of_all_requests(tmp_path: Path) -> None:
    digests = tuple(hashlib.sha256(key.encode()).digest() for key in ("one", "two"))

    async def statuses(known: int) -> list[int]:
        made = service(tmp_path, ScriptedBackend(*GOOD), ApiKeys(digests[:known]))
        made.most_busy, made.busy[digests[0].hex()] = 4, 2
        async with client(made) as http:
            headers = [{**HEADERS, "Authorization": f"Bearer {key}"} for key in ("one", "two")[:known]]
            body = completion("w1")
            return [(await http.post("/v1/completions", content=body, headers=each)).status_code for each in headers]

    assert asyncio.run(statuses(2)) == [429, 200]
    assert asyncio.run(statuses(1)) == [200]  # nobody else could use the other half

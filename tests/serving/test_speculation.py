"""A server that speculates answers as one that does not, and counts its drafts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.serving.serving_tools import MODEL, PROMPT, Reference, Start


def metrics(url: str) -> dict[str, float]:
    lines = (line.split() for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("lucid_draft"))
    return {name: float(value) for name, value in lines}


def test_answers_stay_the_same_and_drafts_are_counted(
    start: Start, artifacts: dict[str, Path], reference: Reference
) -> None:
    url = start(artifacts["static"], "--speculate", "lookup", "--rows", 3).url
    names = ("tokens_proposed", "tokens_accepted", "near_ties")
    assert metrics(url) == {f"lucid_draft_{name}_total": 0 for name in names}
    asked: list[dict[str, Any]] = [
        {"max_tokens": 24, "temperature": 0},
        {"max_tokens": 24, "temperature": 1.5, "seed": 4},
        {"max_tokens": 9, "temperature": 0, "stop": "blue"},
        {"max_tokens": 16, "temperature": 0, "logprobs": 2},
    ]

    def ask(options: dict[str, Any]) -> dict[str, Any]:
        body = {"model": MODEL, "prompt": PROMPT, **options}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, asked))
    plain = reference.text(PROMPT, 24)
    assert found[0]["text"] == plain
    assert found[1]["text"] == reference.text(PROMPT, 24, temperature=1.5, seed=4)
    assert found[2]["text"] == reference.text(PROMPT, 9).partition("blue")[0]
    assert found[3]["text"] == reference.text(PROMPT, 16)
    assert len(found[3]["logprobs"]["tokens"]) == len(found[3]["logprobs"]["top_logprobs"])
    counts = metrics(url)
    assert 0 < counts["lucid_draft_tokens_accepted_total"] <= counts["lucid_draft_tokens_proposed_total"]

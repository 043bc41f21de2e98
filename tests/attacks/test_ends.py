"""A model that hangs, clients that leave, and the end of a server under load."""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, Server, Start

THINGS = ("red lamp", "blue cup", "green key", "old map", "heavy bell", "empty bottle", "red cup", "blue key")
ROUNDS = 1 + int(os.environ.get("LUCID_FUZZ_EXAMPLES", "0")) // 250  # more with make fuzz
ANIMALS = ("fox", "owl", "bear", "cat", "swan", "crab", "duck", "wolf")


def body(number: int, **more: Any) -> dict[str, Any]:
    """Return a request; each number has a prompt of its own."""
    facts = [f"{animal} has {THINGS[(number + place) % 8]}" for place, animal in enumerate(ANIMALS)]
    prompt = ", ".join(facts) + f". {ANIMALS[number % 8]} has"
    return {"model": MODEL, "prompt": prompt, "max_tokens": 24, "ignore_eos": True, **more}


def test_a_step_that_hangs_fails_health_checks_and_does_not_block_shutdown(
    start: Start, artifacts: dict[str, Path]
) -> None:
    server = start(artifacts["growing"], "--timeout", 2, "--grace", 0.2, slow=600)
    end = time.monotonic() + PATIENCE
    health = httpx.get(f"{server.url}/healthz")
    while health.status_code == 200 and time.monotonic() < end:  # on a busy machine 504 may come before the step
        answer = httpx.post(f"{server.url}/v1/completions", json=body(0), timeout=PATIENCE)
        assert (answer.status_code, answer.json()["error"]["code"]) in ((504, "timeout"), (503, "engine_stuck"))
        time.sleep(0.5)
        health = httpx.get(f"{server.url}/healthz")
    assert (health.status_code, health.json()["error"]["code"]) == (503, "engine_stuck")
    answer = httpx.post(f"{server.url}/v1/completions", json=body(0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stuck")
    assert server.stop(signal.SIGTERM) == 1
    assert any("still runs a step" in line for line in server.errors)
    assert not any("Traceback" in line or "terminate" in line for line in server.errors)


def test_clients_that_leave_change_no_answer_of_others(start: Start, artifacts: dict[str, Path]) -> None:
    """Half of the clients leave early: the others get what they get alone. Then the server ends under load."""
    server = start(artifacts["growing"])
    url = f"{server.url}/v1/completions"
    kinds = [{"temperature": 0}, {"temperature": 1, "seed": 7}, {"temperature": 0.8, "top_p": 0.9, "seed": 1}]

    def ask(number: int) -> str:
        data = body(number, **kinds[number % 3])
        while (answer := httpx.post(url, json=data, timeout=PATIENCE)).status_code == 429:
            time.sleep(0.05)
        return str(answer.json()["choices"][0]["text"])

    def leave(number: int) -> None:
        chance = random.Random(number)
        data = body(number, stream=chance.random() < 0.7, n=1 + number % 3)
        try:
            with httpx.stream("POST", url, json=data, timeout=0.02 + chance.random()) as answer:
                for _, _ in zip(range(chance.randrange(6)), answer.iter_lines(), strict=False):
                    pass
        except httpx.HTTPError:
            pass

    alone = {number: ask(number) for number in range(8)}
    with ThreadPoolExecutor(32) as clients:
        for _ in range(ROUNDS):
            asked = {number: clients.submit(ask, number % 8) for number in range(32)}
            left = [clients.submit(leave, number) for number in range(32)]
            assert {number: each.result() for number, each in asked.items()} == {n: alone[n % 8] for n in range(32)}
            for each in left:
                each.result()
    end = time.monotonic() + PATIENCE
    while "lucid_active_rows 0.0" not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < end, "rows are not freed"
        time.sleep(0.05)
    end_under_load(server, url)


def end_under_load(server: Server, url: str) -> None:
    """Stop the server while clients ask; every request gets a complete answer or an error status."""
    answers: list[int] = []

    def ask(number: int) -> None:
        """Ask until the server answers that it is shutting down, or refuses connections."""
        for more in range(200):
            try:
                answer = httpx.post(url, json=body(number + more), timeout=PATIENCE)
            except httpx.ConnectError:
                return
            answers.append(answer.status_code)
            assert answer.status_code in (200, 429, 503), answer.text
            if answer.status_code == 200:
                assert answer.json()["usage"]["completion_tokens"] == 24
            if answer.status_code == 503:
                return

    with ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(ask, number) for number in range(12)]
        while len(answers) < 12:
            time.sleep(0.02)
        assert server.stop(signal.SIGTERM) == 0
        for each in asked:
            each.result()
    assert answers.count(200) >= 12
    assert not any("Traceback" in line for line in server.errors)

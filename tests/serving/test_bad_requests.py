"""What a server answers to input that is wrong, hostile or too much, and that it goes on afterwards."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server

KEY = "a-key-that-nobody-guesses"
BODY_LIMIT = 100_000
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def strict(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys and narrow limits."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# for the tests\n\n{KEY}\nanother-key\n")
    keys.chmod(0o600)
    options = ["--max-body", BODY_LIMIT, "--max-prompt-tokens", 100, "--max-new-tokens", 50, "--timeout", 300]
    words = ["serve", str(artifacts["growing"]), "--port", "0", "--served-model-name", MODEL, "--rows", "2"]
    words += ["--max-queue", "2", "--max-choices", "4", "--api-key-file", str(keys)]
    running = Server(["-m", "lucid_deploy.cli", *words, *map(str, options)])
    yield running
    assert running.stop() == 0
    assert not any("Traceback" in line for line in running.errors)


@pytest.fixture(scope="module")
def http(strict: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=strict.url, headers=headers, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(autouse=True)
def _still_serves(http: httpx.Client) -> Iterator[None]:
    yield
    answer = http.post(COMPLETIONS, json={"model": MODEL, "prompt": PROMPT, "temperature": 0})
    assert answer.json()["choices"][0]["text"] == "blue cup"


def refused(answer: httpx.Response, status: int = 400, code: str | None = None) -> str:
    """Check the shape of an error, return its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code
    return str(error["message"])


def test_what_changes_nothing_is_accepted(http: httpx.Client) -> None:
    neutral = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "response_format": {"type": "text"},
        "presence_penalty": 0,
        "logit_bias": {},
    }
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "best_of": 1, "suffix": None, "top_k": 0, **neutral}
    assert http.post(COMPLETIONS, json=body).json()["choices"][0]["text"] == "blue cup"
    more = {"tools": [], "tool_choice": "none", "frequency_penalty": 0.0}
    answer = http.post(CHAT, json={"model": MODEL, "messages": USER, "temperature": 0, **neutral, **more})
    assert answer.json()["choices"][0]["message"]["content"] == "blue cup"


def test_a_client_without_a_key_hears_of_it_while_it_sends(strict: Server) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x" * (3 << 20)}).encode()
    for url in (COMPLETIONS, "/v1/nothing"):
        answer = httpx.post(strict.url + url, content=body, headers={"Content-Type": "application/json"})
        refused(answer, 401, "invalid_api_key")


def test_keys(strict: Server, http: httpx.Client) -> None:
    wrong = ["", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}", "Bearer # for the tests"]
    for value in wrong:
        answer = httpx.get(f"{strict.url}/v1/models", headers={"Authorization": value})
        refused(answer, 401, "invalid_api_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert refused(httpx.get(f"{strict.url}/metrics", headers={"Authorization": value}), 401)
    raw = httpx.get(f"{strict.url}/v1/models", headers=[(b"Authorization", b"Bearer \xff\xe9")])  # type: ignore[list-item]
    refused(raw, 401)
    assert httpx.get(f"{strict.url}/healthz").json() == {"status": "ok"}
    assert http.get("/v1/models", headers={"Authorization": "bearer another-key"}).status_code == 200
    with openai.OpenAI(base_url=f"{strict.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"


def test_a_full_queue_is_429_with_retry_after(strict: Server, http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": ["fox"] * 4, "max_tokens": 50, "ignore_eos": True}
    statuses: set[int] = set()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        while not {200, 429} <= statuses:  # on a busy machine one may come after the other
            answers = list(pool.map(lambda _: http.post(COMPLETIONS, json=body), range(8)))
            statuses |= {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    full = [answer for answer in answers if answer.status_code == 429]
    for answer in full:
        refused(answer, 429, "queue_full")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60

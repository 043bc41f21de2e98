"""What a server answers to input that is wrong, hostile or too much, and that it goes on afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server, Start

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


BODIES: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b'"prompt"', "must be a JSON object"),
    (b'{"model": "\xff\xfe"}', "not UTF-8"),
    (b"\xff\xfe{\x00}\x00", "not UTF-8"),
    (b'{"a":' * 20_000, "nested too deeply"),
    (b'{"model": "demo", "prompt": "fox", "temperature": NaN}', "NaN is not a JSON number"),
    (b'{"model": "demo", "prompt": "fox", "temperature": Infinity}', "Infinity is not"),
    (b'{"model": "demo", "prompt": "fox", "temperature": 1e999}', "temperature must be 0 to 2"),
    (b'{"model": "demo", "prompt": "fox", "max_tokens": ' + b"9" * 4000 + b"}", "a number of 4000 digits"),
    (b'{"model": "demo", "prompt": "fox", "max_tokens": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"model": "demo", "prompt": "half \\ud800"}', "lone surrogate"),
    (b"{}", "field model is missing"),
]


@pytest.mark.parametrize(("body", "message"), BODIES)
def test_bodies(http: httpx.Client, body: bytes, message: str) -> None:
    answer = http.post(COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
    assert message in refused(answer)
    assert len(answer.content) < 1000


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt is missing"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": [[]]}, "prompt is empty"),
    ({"prompt": ["fox", ""]}, "prompt is empty"),
    ({"prompt": 7}, "prompt must be a text"),
    ({"prompt": {"text": "fox"}}, "prompt must be a text"),
    ({"prompt": ["fox", [1]]}, "mixture"),
    ({"prompt": [1, "fox"]}, "mixture"),
    ({"prompt": [1, True]}, "prompt[1] must be a text, a whole number (a token id)"),
    ({"prompt": [1, 2.0]}, "not 2.0"),
    ({"prompt": [1, 129]}, "Token id 129 is outside"),
    ({"prompt": [-1]}, "Token id -1 is outside"),
    ({"prompt": [10**30]}, "outside the vocabulary"),
    ({"prompt": [[[1]]]}, "prompt[0][0] must be a whole number, not a list"),
    ({"prompt": "fox " * 100}, "101 tokens; this server takes 100"),
    ({"prompt": ["fox"] * 5}, "5 prompts are too many"),
    ({"n": 5}, "n must be 1 to 4"),
    ({"n": 3, "prompt": ["fox", "owl"]}, "6 generations"),
    ({"n": 0}, "n must be"),
    ({"n": "2"}, "n must be a whole number"),
    ({"max_tokens": 51}, "max_tokens must be 1 to 50"),
    ({"max_tokens": 0}, "max_tokens must be"),
    ({"max_tokens": 5.0}, "max_tokens must be a whole number"),
    ({"max_tokens": True}, "max_tokens must be a whole number"),
    ({"temperature": -0.1}, "temperature must be 0 to 2"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"temperature": 10**400}, "temperature must be 0 to 2, not a number of 401 digits"),
    ({"prompt": "x" * 5000}, "5000 characters; this server takes 1600"),
    ({"top_p": 0}, "top_p must be above 0"),
    ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
    ({"top_k": -1}, "top_k must be"),
    ({"seed": 2**63}, "seed must be"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"stop": ""}, "stop must be a text of at most 1000 characters that is not empty"),
    ({"stop": 5}, "stop must be a text"),
    ({"stop": [None]}, "stop[0] must be a text, not null"),
    ({"stop": ["x"] * 17}, "stop must be a list of at most 16, not a list of 17"),
    ({"stop": "x" * 1001}, "at most 1000 characters that is not empty, not one of 1001"),
    ({"logprobs": 21}, "logprobs must be 0 to 20"),
    ({"logprobs": True}, "logprobs must be a whole number"),
    ({"echo": True, "logprobs": 1}, "echo together with logprobs"),
    ({"best_of": 2}, "best_of is not supported"),
    ({"suffix": "end"}, "suffix is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format: The constraint allows no token here"),
    ({"logit_bias": {"129": 1}}, "logit_bias: token id 129 is outside the vocabulary (0 to 128)"),
    ({"logit_bias": {"5": "much"}}, "logit_bias must be an object from token ids to numbers"),
    ({"logit_bias": [5]}, "logit_bias must be an object from token ids to numbers, not a list"),
    ({"logit_bias": {"5": 1e300}}, "The bias of token 5 must be -100 to 100"),
    ({"presence_penalty": 2.1}, "presence_penalty must be -2 to 2"),
    ({"frequency_penalty": False}, "frequency_penalty must be a number"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty must be 0.01 to 100"),
    ({"min_p": 1.5}, "min_p must be 0 to 1"),
    ({"bad_words": [""]}, "bad_words[0] must be a text"),
    ({"bad_words": ["zebra"]}, 'no token for the bad word "zebra"'),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options needs stream"),
    ({"stream": True, "stream_options": {"usage": True}}, 'Unknown field: stream_options."usage"'),
    ({"stream": True, "stream_options": []}, "stream_options must be an object"),
    ({"file": "/etc/passwd"}, "Unknown field"),
    ({"x" * 5000: 1}, "Unknown field"),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_fields_of_a_completion(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    body = {"model": MODEL, "prompt": "fox", **fields}
    answer = http.post(COMPLETIONS, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert message in refused(answer)
    assert len(answer.content) < 1000


CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "field messages is missing"),
    ({"messages": []}, "messages must be a list"),
    ({"messages": "hello"}, "messages must be a list"),
    ({"messages": ["hello"]}, "messages[0] must be an object"),
    ({"messages": [{"content": "fox"}]}, "field messages[0].role is missing"),
    ({"messages": [{"role": "user"}]}, "field messages[0].content is missing"),
    ({"messages": [{"role": "wizard", "content": "fox"}]}, "No such role: wizard"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 'must be "text", the only kind'),
    ({"messages": [{"role": "user", "content": "fox", "tool_calls": [1]}]}, "tool_calls"),
    ({"messages": [{"role": "user", "content": "fox", "path": "/etc"}]}, 'Unknown field: messages[0]."path"'),
    ({"tools": [{"type": "function"}]}, "field tools[0].function is missing"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "the model's chat template has no tools"),
    ({"tool_choice": "required"}, "tool_choice needs tools"),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "no assistant's message before it"),
    ({"response_format": {"type": "json_object"}}, "response_format: The constraint allows no token here"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ({"logprobs": 2}, "logprobs must be true or false"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be"),
    ({"max_completion_tokens": 51}, "max_completion_tokens must be"),
    ({"echo": True}, "Unknown field"),
]


@pytest.mark.parametrize(("fields", "message"), CHATS)
def test_fields_of_a_chat(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    assert message in refused(http.post(CHAT, json={"model": MODEL, "messages": USER, **fields}))


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


def test_a_wrong_field_is_named(http: httpx.Client) -> None:
    """``param`` is the field's path as it is, without quotes, for programs to compare."""
    for fields, param in [
        ({"file": 1}, "file"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"suffix": "end"}, "suffix"),
    ]:
        answer = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "fox", **fields})
        assert answer.json()["error"]["param"] == param
    answer = http.post(CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": 5}]})
    assert answer.json()["error"]["param"] == "messages[0].content"


def test_the_schemas_are_published(http: httpx.Client) -> None:
    found = http.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    body = found["paths"][COMPLETIONS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/CompletionRequest"}
    assert found["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False


def test_other_paths_and_methods(http: httpx.Client) -> None:
    assert http.get("/").headers["content-type"].startswith("text/html")
    refused(http.get("/redoc"), 404)
    refused(http.get("/v1/models/..%2f..%2fetc%2fpasswd"), 404, "model_not_found")
    refused(http.get(COMPLETIONS), 405, "method_not_allowed")
    head = http.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")
    refused(http.post("/v1/embeddings", json={}), 404)
    assert "access-control-allow-origin" not in http.get("/v1/models", headers={"Origin": "http://a.example"}).headers


def test_another_type_of_body(http: httpx.Client) -> None:
    body = json.dumps({"model": MODEL, "prompt": "fox"})
    refused(http.post(COMPLETIONS, content=body, headers={"Content-Type": "text/plain"}), 415)
    refused(http.post(COMPLETIONS, files={"file": b"x"}), 415)
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert http.post(COMPLETIONS, content=body, headers=charset).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_hundred_megabytes(http: httpx.Client, chunked: bool) -> None:
    block = b" " * (1 << 20)
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += len(block)
            yield block

    headers = {"Content-Type": "application/json"} | ({} if chunked else {"Content-Length": str(100 << 20)})
    with contextlib.suppress(httpx.TransportError):  # the server closed while more was coming, and that was seen first
        refused(http.post(COMPLETIONS, content=parts(), headers=headers), 413, "body_too_large")
    assert sent < 60 << 20


def test_a_body_a_little_too_large_hears_of_it(http: httpx.Client) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x" * (3 << 20)}).encode()
    json_body = {"Content-Type": "application/json"}
    refused(http.post(COMPLETIONS, content=body, headers=json_body), 413, "body_too_large")
    refused(http.post(COMPLETIONS, content=iter([body]), headers=json_body), 413, "body_too_large")


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


def send(server: Server, data: bytes, then_wait: float = 2.0) -> bytes:
    """Send bytes as they are, return what comes back until the connection closes or the time is over."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=then_wait) as connection:
        connection.sendall(data)
        out = b""
        try:
            while part := connection.recv(65536):
                out += part
        except TimeoutError:
            pass
    return out


HEAD = (
    f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    "Content-Type: application/json\r\n"
)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (b"GET /nothing HTTP/9.9\r\n\r\n", b"4"),
        (HEAD.encode() + b"Content-Length: -5\r\n\r\n", b"400"),
        (HEAD.encode() + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ", b"400"),
        (HEAD.encode() + b"Content-Length: 99999999999999999999999999\r\n\r\n", b"4"),
        (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b"4"),
    ],
)
def test_games_with_headers(strict: Server, data: bytes, status: bytes) -> None:
    try:
        answer = send(strict, data)
    except ConnectionError:
        return  # closed while more was coming
    assert answer == b"" or answer.split(b" ", 2)[1].startswith(status)


def test_a_body_that_never_ends_is_given_up(start: Start, artifacts: dict[str, Path]) -> None:
    server = start(artifacts["growing"], "--timeout", 2)
    began = time.monotonic()
    answer = send(server, HEAD.encode() + b'Content-Length: 50\r\n\r\n{"model"', then_wait=PATIENCE)
    assert answer.split(b" ", 2)[1] == b"408"
    assert time.monotonic() - began > 1.5


def test_a_full_queue_is_429_with_retry_after(strict: Server, http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": ["fox"] * 4, "max_tokens": 50, "ignore_eos": True}
    import concurrent.futures

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


def test_nothing_of_a_request_is_logged_but_its_path(strict: Server, http: httpx.Client) -> None:
    secret = "zebra-" + os.urandom(4).hex()
    http.post(COMPLETIONS, json={"model": MODEL, "prompt": secret})
    http.get("/v1/models/line%0Abreak")
    time.sleep(0.2)
    assert not any(secret in line for line in strict.errors)
    assert any('"/v1/models/line?break" 404' in line for line in strict.errors)

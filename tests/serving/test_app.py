"""Paths and methods, refused clients, the log, and unexpected exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from lucid_deploy.serving.app import App
from lucid_deploy.serving.front import Exchange, Service
from lucid_deploy.serving.security import ApiKeys
from tests.serving.stand_ins import ScriptedBackend, client, service

KEYS = ApiKeys((b"x" * 32,))


def ask(
    folder: Path,
    method: str = "GET",
    path: str = "/v1/models",
    headers: dict[str, str] | None = None,
    state: str = "ready",
    change: Callable[[Service], object] = lambda _: None,
    **settings: Any,
) -> httpx.Response:
    async def run() -> httpx.Response:
        made = service(folder, ScriptedBackend(state=state), **settings)
        change(made)
        async with client(made) as http:
            return await http.request(method, path, headers=headers)

    return asyncio.run(run())


def test_health_follows_the_state(tmp_path: Path) -> None:
    for path in ("/healthz", "/health"):
        assert ask(tmp_path, "GET", path).json() == {"status": "ok"}
        loading = ask(tmp_path, "GET", path, state="loading")
        assert (loading.status_code, loading.json()["error"]["code"]) == (503, "loading")
        for state, status in (("ready", 200), ("dead", 503)):
            assert ask(tmp_path, "HEAD", path, state=state).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/v1/responses/resp_1", 404, "not_found"),
        ("GET", "/v1/responses", 405, "method_not_allowed"),
        ("GET", "/v1/models/../../etc/passwd", 404, "not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/completions", 415, "unsupported_media_type"),
    ],
)
def test_unknown_paths_and_methods_are_refused(method: str, path: str, status: int, code: str, tmp_path: Path) -> None:
    answer = ask(tmp_path, method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if code == "not_found":
        assert "/openapi.json lists" in answer.json()["error"]["message"]


def test_forbidden_hosts_encodings_and_keys_are_refused(tmp_path: Path) -> None:
    answer = ask(tmp_path, headers={"Origin": "http://a.example"})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    assert ask(tmp_path, headers={"Transfer-Encoding": "gzip, chunked"}).status_code == 400
    assert ask(tmp_path, headers={"Host": "evil.example"}, hosts=frozenset()).status_code == 403
    assert ask(tmp_path, keys=KEYS).status_code == 401
    assert ask(tmp_path, path="/healthz", keys=KEYS).status_code == 200
    assert ask(tmp_path, path="/metrics", metrics_keys=KEYS).status_code == 401
    assert ask(tmp_path, metrics_keys=KEYS).status_code == 200


def test_connections_close_where_a_body_may_follow_and_while_the_server_ends(tmp_path: Path) -> None:
    waiting = {"Content-Length": "1", "Expect": "100-continue"}
    assert ask(tmp_path, "POST", "/nowhere", headers=waiting).headers["connection"] == "close"
    ending = ask(tmp_path, change=lambda made: setattr(made, "draining", True))
    assert ending.status_code == 200 and ending.headers["connection"] == "close"


def test_the_log_and_the_client_have_the_same_id(tmp_path: Path, serving_log: pytest.LogCaptureFixture) -> None:
    ids = [ask(tmp_path, **more).headers["x-request-id"] for more in ({}, {"keys": KEYS})]
    assert len({*ids}) == 2
    answered, refused = [record.getMessage() for record in serving_log.records if '"/v1' in record.getMessage()]
    assert " 200 " in answered and answered.endswith(f" ms {ids[0]}")
    assert " 401 " in refused and refused.endswith(f" ms {ids[1]}")


@pytest.mark.parametrize(
    ("path", "state", "level"), [("/healthz", "ready", "DEBUG"), ("/healthz", "dead", "INFO"), ("/", "ready", "INFO")]
)
def test_probes_do_not_fill_the_log(
    path: str, state: str, level: str, tmp_path: Path, serving_log: pytest.LogCaptureFixture
) -> None:
    serving_log.set_level("DEBUG", "lucid_deploy.serving")
    ask(tmp_path, path=path, state=state)
    (record,) = (each for each in serving_log.records if f'"{path}"' in each.getMessage())
    assert record.levelname == level


@pytest.mark.parametrize("begun", [False, True])
def test_an_unexpected_exception_gives_500_or_ends_the_answer(
    begun: bool, tmp_path: Path, serving_log: pytest.LogCaptureFixture
) -> None:
    async def endpoint(exchange: Exchange, _: bytes) -> Response:
        exchange.answer = SimpleNamespace(id="cmpl-1", job=SimpleNamespace(stream=False))  # type: ignore[assignment]
        if begun:
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        app = App(service(tmp_path, ScriptedBackend()))
        app._routes["/version"] = {"GET": endpoint}
        await app({"type": "http", "method": "GET", "path": "/version", "headers": []}, asyncio.sleep, send)  # type: ignore[arg-type]

    asyncio.run(run())
    if begun:
        assert len(sent) == 1  # the rest is missing, so that uvicorn closes the connection
    else:
        assert sent[0]["status"] == 500 and b"internal_error" in sent[1]["body"] and b"secret" not in sent[1]["body"]
    assert serving_log.records[-1].getMessage().endswith(" cmpl-1")

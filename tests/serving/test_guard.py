"""Around every request: refusals, the rest of a body, faults."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import Response

from lucid_deploy.serving.app import App
from lucid_deploy.serving.front import Exchange
from lucid_deploy.serving.security import ApiKeys
from tests.serving.stand_ins import ScriptedBackend, service

Sent = list[dict[str, Any]]


def run(
    folder: Path,
    app: Any = None,
    parts: list[bytes] | None = None,
    headers: dict[str, str] | None = None,
    path: str = "/v1/models",
    change: Any = lambda _: None,
    **settings: Any,
) -> tuple[Sent, int]:
    """Send a request through the guard; return what was sent back, and how many bytes of the body were taken in."""
    left = list(parts or [])
    taken = 0
    sent: Sent = []

    async def receive() -> Any:
        nonlocal taken
        if not left:
            await asyncio.sleep(60)
        part = left.pop(0)
        taken += len(part)
        return {"type": "http.request", "body": part, "more_body": bool(left) or part == b"more"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def go() -> None:
        made = service(folder, ScriptedBackend(), **settings)
        change(made)
        raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "client": ("c", 1)}
        served = App(made)
        served._routes = {path: {"POST": app or answering(200)}}
        await served(scope, receive, send)

    asyncio.run(go())
    return sent, taken


def answering(status: int) -> Any:
    async def endpoint(_: Exchange) -> Response:
        return Response(b"x", status)

    return endpoint


def closes(sent: Sent) -> bool:
    return (b"connection", b"close") in [(name.lower(), value) for name, value in sent[0]["headers"]]


def test_the_log_and_the_client_have_the_same_id(tmp_path: Path, serving_log: pytest.LogCaptureFixture) -> None:
    async def app(exchange: Any) -> Response:
        exchange.answer = SimpleNamespace(id="cmpl-1")
        return Response(b"x")

    def id_of(sent: Sent) -> str:
        return dict(sent[0]["headers"])[b"x-request-id"].decode()

    ids = [id_of(run(tmp_path, app)[0]), id_of(run(tmp_path, app, keys=ApiKeys((b"digest",)))[0])]
    assert len({*ids}) == 2
    answered, refused = [record.getMessage() for record in serving_log.records][-2:]
    assert " 200 " in answered and answered.endswith(f" ms {ids[0]} cmpl-1")
    assert " 401 " in refused and refused.endswith(f" ms {ids[1]}")


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [("/healthz", 200, "DEBUG"), ("/healthz", 503, "INFO"), ("/v1/models", 200, "INFO")],
    ids=["healthy", "unhealthy", "request"],
)
def test_probes_do_not_fill_the_log(
    path: str, status: int, level: str, tmp_path: Path, serving_log: pytest.LogCaptureFixture
) -> None:
    serving_log.set_level("DEBUG", "lucid_deploy.serving")
    run(tmp_path, answering(status), path=path)
    record = serving_log.records[-1]
    assert record.levelname == level and f'"{path}" {status} ' in record.getMessage()


def test_a_body_that_waits_to_be_asked_for_is_not_asked_for(tmp_path: Path) -> None:
    sent, taken = run(tmp_path, answering(404), [b"x"], {"content-length": "1", "expect": "100-continue"})
    assert (taken, closes(sent)) == (0, True)


def test_connections_close_while_the_server_ends(tmp_path: Path) -> None:
    sent, _ = run(tmp_path, change=lambda made: setattr(made, "draining", True))
    assert sent[0]["status"] == 200 and closes(sent)


def test_refusals(tmp_path: Path) -> None:
    assert run(tmp_path, headers={"transfer-encoding": "gzip, chunked"}, parts=[b"x"])[0][0]["status"] == 400
    assert run(tmp_path, headers={"host": "evil.example"}, hosts=frozenset())[0][0]["status"] == 403
    keys = ApiKeys((b"x" * 32,))
    assert run(tmp_path, keys=keys)[0][0]["status"] == 401
    assert run(tmp_path, keys=keys, path="/healthz")[0][0]["status"] == 200


def test_keys_for_metrics_are_others(tmp_path: Path) -> None:
    keys, metrics_keys = ApiKeys(), ApiKeys((b"x" * 32,))
    assert run(tmp_path, keys=keys, metrics_keys=metrics_keys, path="/metrics")[0][0]["status"] == 401
    assert run(tmp_path, keys=keys, metrics_keys=metrics_keys)[0][0]["status"] == 200


def test_a_fault_is_a_500_of_the_same_shape(tmp_path: Path, serving_log: pytest.LogCaptureFixture) -> None:
    async def app(_: Exchange) -> None:
        raise KeyError("secret")

    sent, _ = run(tmp_path, app)
    assert sent[0]["status"] == 500
    assert b"internal_error" in sent[1]["body"] and b"secret" not in sent[1]["body"]


def test_a_fault_within_an_answer_ends_it(tmp_path: Path) -> None:
    async def app(exchange: Exchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret")

    sent, _ = run(tmp_path, app)
    assert len(sent) == 1  # the rest is missing, so that uvicorn closes the connection

"""Bodies of requests: sizes, types, and the memory that all bodies share."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.front import BODIES, FREE_BYTES, Exchange
from tests.serving.stand_ins import ScriptedBackend, service

JSON = {"content-type": "application/json"}


def memory(most: int = 1 << 30, body_bytes: int = 4 << 20) -> Any:
    """Return a stand-in for the service whose memory bodies share."""
    bodies = {"setup": SimpleNamespace(body_bytes=body_bytes), "body_memory": 0, "most_body_memory": most}
    api = SimpleNamespace(keys=())
    return SimpleNamespace(**bodies, busy=Counter(), most_busy=9, api=api, check_ready=lambda: None)


def exchange(shared: Any, receive: Any = None, headers: dict[str, str] = JSON) -> Exchange:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Exchange(shared, {"type": "http", "headers": raw}, receive, None)  # type: ignore[arg-type]


def read(parts: list[bytes], headers: dict[str, str] = JSON, shared: Any = None, **bounds: Any) -> bytes:
    """Return the body that arrives in parts; after the last one nothing comes."""
    messages = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    incoming = exchange(shared or memory(**bounds), receive, headers)
    try:
        return asyncio.run(incoming.body())
    finally:
        incoming.count(0)


def refused(status: int, *arguments: Any, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*arguments, **more)
    assert caught.value.status == status
    return caught.value


def test_the_time_for_a_request_begins_before_its_body() -> None:
    async def run() -> None:
        shared = memory()
        shared.api.seconds, shared.ending = 60, asyncio.Future()
        incoming = exchange(shared, lambda: asyncio.sleep(60))
        incoming.started -= 60
        await asyncio.wait_for(incoming.during(asyncio.sleep(60)), 10)

    with pytest.raises(ApiError, match="longer than 60 s"):
        asyncio.run(run())


def test_the_parts_of_a_body_are_joined() -> None:
    assert read([b"a", b"", b"bc"]) == b"abc"
    assert read([b"abc"], {"content-type": "Application/JSON; charset=utf-8", "content-length": "3"}) == b"abc"


def test_other_content_types_are_refused() -> None:
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/jsonp"}):
        refused(415, [b"{}"], headers)


def test_a_body_may_be_longer_than_its_content_length() -> None:
    assert read([b"12345", b"67890"], {**JSON, "content-length": "1"}, body_bytes=10) == b"1234567890"
    refused(413, [b"12345", b"678901"], {**JSON, "content-length": "1"}, body_bytes=10)


def test_a_client_that_leaves_raises_client_disconnect() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        asyncio.run(exchange(memory(), receive).body())


def test_bodies_share_memory_and_give_it_back(tmp_path: Path) -> None:
    shared = memory(100)
    first, second = exchange(shared), exchange(shared)
    first.count(FREE_BYTES + 60)
    first.count(FREE_BYTES + 90)
    assert shared.body_memory == 90
    second.count(FREE_BYTES)  # small ones get in
    with pytest.raises(ApiError, match="Too many large requests"):
        second.count(FREE_BYTES + 11)
    second.count(FREE_BYTES + 10)
    assert shared.body_memory == 100
    second.count(0)
    assert shared.body_memory == 90

    async def most() -> tuple[int, int]:
        made = service(tmp_path, ScriptedBackend())
        return made.most_body_memory, made.setup.body_bytes

    total, one = asyncio.run(most())
    assert total == BODIES * one


def test_large_bodies_are_refused_while_others_hold_the_memory() -> None:
    shared = memory(FREE_BYTES)
    other = exchange(shared)
    other.count(2 * FREE_BYTES)
    error = refused(503, [b"x" * FREE_BYTES, b"y"], shared=shared)
    assert (error.code, error.headers["Retry-After"]) == ("too_many_bodies", "5")
    assert read([b"x" * FREE_BYTES], shared=shared)
    other.count(0)
    assert read([b"x" * FREE_BYTES, b"y"], shared=shared)

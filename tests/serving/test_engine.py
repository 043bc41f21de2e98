"""The engine's thread: admission, cancelled requests, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from lucid_deploy.batching import Finished, Request, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.speculation import DraftCounts
from lucid_deploy.serving.engine import DOWN, Engine
from lucid_deploy.serving.errors import ApiError


class ScriptedBatcher:
    """Gives each request one token a step, as many as its prompt has, and then its end."""

    cache_tokens = cached_tokens = prompt_tokens_computed = prompt_tokens_reused = 0
    drafts = DraftCounts(proposed=7, accepted=3)

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.cancelled: list[int] = []
        self.fault: Exception | None = None
        self.ends: dict[int, Finished] = {}  # by the request's number, if not the usual one
        self.held = threading.Event()
        self.held.set()

    @property
    def idle(self) -> bool:
        return not self.left

    @property
    def waiting(self) -> int:
        return 0

    @property
    def active(self) -> int:
        return len(self.left)

    def submit(self, request: Request) -> int:
        if not request.prompt_ids:
            raise LucidError("The prompt is empty.")
        number = len(self.left) + 100 * len(self.cancelled)
        self.left[number] = len(request.prompt_ids)
        return number

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self.left.pop(number, None)

    def parts(self) -> Iterator[list[Token | Finished]]:
        self.held.wait(10)
        if self.fault is not None:
            raise self.fault
        events: list[Token | Finished] = []
        for number in list(self.left):
            self.left[number] -= 1
            events.append(Token(number, 7))
            if not self.left[number]:
                del self.left[number]
                events.append(self.ends.get(number, Finished(number, "length")))
        yield events


def with_engine(
    test: Callable[[Engine, ScriptedBatcher], Awaitable[None]], rows: int = 2, max_queue: int = 1, **more: Any
) -> None:
    async def run() -> None:
        batcher: Any = ScriptedBatcher()
        engine, loaded = Engine(lambda: batcher, rows, max_queue, **more), threading.Event()
        engine.start(loaded.set)
        await asyncio.to_thread(loaded.wait, 10)
        try:
            await test(engine, batcher)
        finally:
            batcher.held.set()
            engine.stop()

    asyncio.run(run())


async def everything(stream: Any, rows: int) -> list[tuple[int, Any]]:
    """Return the events of a job up to the end of all its rows."""
    out: list[tuple[int, Any]] = []
    while rows:
        new = await asyncio.wait_for(stream.next(), 10)
        rows -= sum(not isinstance(event, Token) for _, event in new)
        out += new
    return out


def test_events_go_to_the_job_that_asked() -> None:
    async def test(engine: Engine, _: ScriptedBatcher) -> None:
        streams = [engine.submit([Request([1, 2], 5)]), engine.submit([Request([1], 5), Request([1, 2, 3], 5)])]
        first, second = [await everything(stream, rows) for stream, rows in zip(streams, (1, 2), strict=True)]
        assert [type(event) for _, event in first] == [Token, Token, Finished]
        assert [row for row, event in second if isinstance(event, Finished)] == [0, 1]

    with_engine(test)


def test_half_of_the_queue_is_for_other_clients() -> None:
    def requests(client: str, count: int) -> list[Request]:
        return [Request([1], 5, client=client)] * count

    async def test(engine: Engine, batcher: ScriptedBatcher) -> None:
        batcher.held.clear()
        streams = [engine.submit(requests("a", 3))]  # both rows, and half of the queue
        with pytest.raises(ApiError):
            engine.submit(requests("a", 1))
        streams.append(engine.submit(requests("b", 1)))
        with pytest.raises(ApiError):
            engine.submit(requests("c", 1))  # the queue is full
        batcher.held.set()
        for stream, rows in zip(streams, (3, 1), strict=True):
            await everything(stream, rows)
        await everything(engine.submit(requests("a", 4)), 4)  # their places are free, and nobody else is there

    with_engine(test, max_queue=2, share_queue=True)


def test_admission_is_all_or_nothing() -> None:
    async def test(engine: Engine, batcher: ScriptedBatcher) -> None:
        batcher.held.clear()
        stream = engine.submit([Request([1], 5)] * 2)
        for seconds, wait in ((0.2, "1"), (7.2, "8"), (99.0, "60")):
            engine._seconds = seconds  # the time that generations usually take
            with pytest.raises(ApiError) as error:
                engine.submit([Request([1], 5)] * 2)
            assert (error.value.code, error.value.headers["Retry-After"]) == ("queue_full", wait)
        batcher.held.set()
        await everything(stream, 2)
        await everything(engine.submit([Request([1], 5)] * 3), 3)  # their places are free again

    with_engine(test)


def test_cancelled_generations_free_their_places() -> None:
    async def test(engine: Engine, batcher: ScriptedBatcher) -> None:
        batcher.held.clear()
        stream = engine.submit([Request([1] * 1000, 5)] * 3)
        stream.close()
        batcher.held.set()
        while len(batcher.cancelled) < 3:
            await asyncio.sleep(0.01)
        await everything(engine.submit([Request([1], 5)] * 3), 3)

    with_engine(test)


def test_a_request_that_the_batcher_refuses_gets_status_400() -> None:
    async def test(engine: Engine, _: ScriptedBatcher) -> None:
        for _attempt in range(5):  # no place is lost
            ((_, error),) = await everything(engine.submit([Request([], 5)]), 1)
            assert (error.status, error.message) == (400, "The prompt is empty.")

    with_engine(test, rows=1, max_queue=0)


def test_an_exception_ends_the_engine_and_every_client_gets_an_error(serving_log: pytest.LogCaptureFixture) -> None:
    async def test(engine: Engine, batcher: ScriptedBatcher) -> None:
        batcher.held.clear()
        batcher.fault = RuntimeError("broken")
        stream = engine.submit([Request([1], 5)] * 3)  # one of them waits in the queue
        batcher.held.set()
        faults = [event for _, event in await everything(stream, 3)]
        assert {(fault.status, fault.code) for fault in faults} == {(503, DOWN)}
        assert engine.state == "dead"
        with pytest.raises(ApiError):
            engine.submit([Request([1], 5)])
        assert engine.gauges()["active_rows"] == 0

    with_engine(test)


def test_a_check_that_fails_ends_the_engine_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.serving.engine.CHECK_SECONDS", 0.0)
    sound = True

    def check() -> None:
        if not sound:
            raise LucidError("weights.bin changed.")

    async def test(engine: Engine, _: ScriptedBatcher) -> None:
        nonlocal sound
        await everything(engine.submit([Request([1], 5)]), 1)
        sound = False
        ((_, error),) = await everything(engine.submit([Request([1], 5)]), 1)
        assert (error.code, error.message) == (DOWN, "The engine ended: weights.bin changed.")
        assert engine.state == "dead"

    with_engine(test, check=check)


def test_a_model_that_does_not_load_leaves_the_engine_dead() -> None:
    async def run() -> None:
        def fail() -> Any:
            raise LucidError("no such artifact")

        engine, loaded = Engine(fail, 1, 1), threading.Event()
        with pytest.raises(ApiError, match="still loading"):
            engine.submit([Request([1], 5)])
        engine.start(loaded.set)
        await asyncio.to_thread(loaded.wait, 10)
        assert (engine.state, str(engine.error)) == ("dead", "no such artifact")

    asyncio.run(run())

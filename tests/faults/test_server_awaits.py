"""A server's request whose k-th await fails: whatever it is, nothing stays taken and the next answer is right."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Batcher
from lucid_deploy.runtimes import open_session
from lucid_deploy.serving.app import build_app
from lucid_deploy.serving.backend import LocalBackend
from lucid_deploy.serving.engine import Engine
from lucid_deploy.serving.readers import ReaderPool
from lucid_deploy.serving.security import ApiKeys
from lucid_deploy.serving.service import Service, Settings
from tests.faults.awaits import FailingAwait
from tests.patience import PATIENCE
from tests.serving.reader_tools import completion, write_setup

pytestmark = pytest.mark.slow
FAULTS: dict[str, Callable[[], BaseException]] = {
    "cancelled": asyncio.CancelledError,
    "connection": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    "disk": lambda: OSError(errno.EIO, "Input/output error"),
    "memory": MemoryError,
}
HEADERS = {"Content-Type": "application/json"}


class Running:
    """An application with an engine and a reader process."""

    def __init__(self, folder: Path, session: Any) -> None:
        setup = write_setup(folder, prompt_tokens=64, context=64)
        self.readers = ReaderPool(setup, 1)
        self.engine = Engine(lambda: Batcher(session, 2), 2, 4)
        settings = Settings(setup.model, "f", setup.limits, ApiKeys(), None)
        self.service = Service(settings, LocalBackend(self.engine, TextTokenizer(folder)), self.readers)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(build_app(self.service), raise_app_exceptions=False),
            base_url="http://localhost",
            timeout=PATIENCE,
        )

    async def ask(self, prompt: str, **more: Any) -> str:
        body = completion(prompt, max_tokens=3, temperature=0, ignore_eos=True, **more)
        answer = await self.http.post("/v1/completions", content=body, headers=HEADERS)
        assert answer.status_code in (200, 499, 500, 503), answer.text
        return answer.text

    async def text(self, prompt: str) -> str:
        body = completion(prompt, max_tokens=3, temperature=0)
        answer = await self.http.post("/v1/completions", content=body, headers=HEADERS)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    async def free(self) -> bool:
        """Wait until nothing is taken."""
        for _ in range(int(PATIENCE / 0.01)):
            taken = (self.service.busy, self.service.body_memory.taken, self.engine.admitted)
            if not any(taken) and self.readers.free == 1:
                return True
            await asyncio.sleep(0.01)
        raise AssertionError(f"still taken: {taken}, free readers: {self.readers.free}")


@asynccontextmanager
async def running(folder: Path, session: Any) -> AsyncIterator[Running]:
    made = Running(folder, session)
    await made.readers.start()
    made.engine.start()
    while made.engine.state == "loading":
        await asyncio.sleep(0.01)
    try:
        yield made
    finally:
        made.engine.stop()
        await made.readers.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
def test_any_await_may_fail(
    fault: str, stream: bool, exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "lucid_deploy.serving")  # until the test's end: others look for errors
    session = open_session(exported()[1], threads=1)

    async def check() -> int:
        async with running(tmp_path, session) as made:
            wanted = {prompt: await made.text(prompt) for prompt in ("w5 w7 w5 w7", "w9 w9 w9")}
            assert len(set(wanted.values())) == 2
            number = 0
            while True:
                failing = FailingAwait(number, FAULTS[fault]())
                try:
                    await failing.run(made.ask("w5 w7 w5 w7", stream=stream))
                except BaseException as error:  # noqa: BLE001 (checked)
                    # httpx's transport asserts that answers are complete; uvicorn closes the connection otherwise
                    assert type(error) in (type(FAULTS[fault]()), AssertionError), failing.where
                try:
                    await made.free()
                    assert await made.text("w9 w9 w9") == wanted["w9 w9 w9"]
                except Exception as error:
                    raise AssertionError(f"await {number}, {failing.where}: {error}") from error
                if failing.where is None:
                    return number
                number += 1

    assert asyncio.run(check()) > 10


def test_a_clock_that_jumps_ends_nothing(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the time of day is an hour from the last one, forward or back: deadlines do not follow it."""
    session, start = open_session(exported()[1], threads=1), time.time()

    async def check() -> None:
        async with running(tmp_path, session) as made:
            wanted = await made.text("w5 w7 w5 w7")
            jumps = itertools.count()
            monkeypatch.setattr(time, "time", lambda: start + 3600 * (next(jumps) % 2))
            for _ in range(4):
                assert await made.text("w5 w7 w5 w7") == wanted
            assert next(jumps) >= 4, "nothing read the clock"

    asyncio.run(check())

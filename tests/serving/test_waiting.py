"""What ends the work for a request."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from lucid_deploy.serving.answering import RequestCancellation
from lucid_deploy.serving.errors import ApiError, ClientGone


async def never() -> Any:
    await asyncio.sleep(60)


def patience(receive: Any = never, seconds: float = 60, ending: asyncio.Event | None = None) -> RequestCancellation:
    return RequestCancellation(receive, time.perf_counter() + seconds, seconds, ending or asyncio.Event())


class Work:
    """Work without end that notes that it was cancelled."""

    cancelled = False

    async def __call__(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def test_work_that_ends_in_time() -> None:
    async def work() -> int:
        return 7

    async def run() -> int:
        return await patience().during(work())

    assert asyncio.run(run()) == 7


def test_an_error_of_the_work_goes_on() -> None:
    async def work() -> None:
        raise KeyError("x")

    async def run() -> None:
        await patience().during(work())

    with pytest.raises(KeyError):
        asyncio.run(run())


def test_a_client_that_leaves() -> None:
    work = Work()

    async def run() -> None:
        messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        await patience(receive).during(work())

    with pytest.raises(ClientGone):
        asyncio.run(run())
    assert work.cancelled


@pytest.mark.parametrize(("seconds", "ends", "status"), [(0.01, False, 504), (60, True, 503), (-1, False, 504)])
def test_time_and_the_server_s_end(seconds: float, ends: bool, status: int) -> None:
    work = Work()

    async def run() -> None:
        ending = asyncio.Event()
        if ends:
            ending.set()
        await patience(seconds=seconds, ending=ending).during(work())

    with pytest.raises(ApiError) as caught:
        asyncio.run(run())
    assert caught.value.status == status

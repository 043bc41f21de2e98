"""When work on a request ends: it is done, its client disconnects, its time is over or the server ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive

from lucid_deploy.serving.errors import ClientGone, timed_out, unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class RequestCancellation:
    """What ends the work for a request.

    Attributes:
        receive: Tells that the client is gone. The request's body must have been received.
        deadline: When the request's time is over, by :func:`time.perf_counter`.
        seconds: How long that time was, for the message.
        ending: Set when the server ends what still runs.
    """

    receive: Receive
    deadline: float
    seconds: float
    ending: asyncio.Event

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work; cancel it when the client disconnects, the time is over or the server ends.

        Raises:
            ApiError: The time is over, or the server is ending.
            ClientGone: The client closed the connection.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._until_gone())
        ending = asyncio.ensure_future(self.ending.wait())
        everyone: set[asyncio.Future[Any]] = {task, gone, ending}
        try:
            left = max(0.0, self.deadline - time.perf_counter())
            await asyncio.wait(everyone, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGone
            if ending.done():
                raise unavailable("The server is shutting down.", "shutting_down")
            raise timed_out(self.seconds)
        finally:
            for future in everyone:
                future.cancel()
            await asyncio.gather(*everyone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

"""Makes one of the awaits of some work fail: the k-th time that the event loop goes on with it, in whichever task."""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Coroutine, Generator
from typing import Any

_running: contextvars.ContextVar[FailingAwait | None] = contextvars.ContextVar("failing", default=None)


class FailingAwait:
    """Counts the awaits of work and of the tasks that it starts; one of them raises.

    Attributes:
        count: Awaits so far.
        where: The task that got the fault; None before.

    Args:
        number: Which await fails, from 0; -1: none.
        fault: What it raises.
    """

    def __init__(self, number: int, fault: BaseException) -> None:
        self.count = 0
        self.where: str | None = None
        self._number = number
        self._fault = fault

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do the work."""
        asyncio.get_running_loop().set_task_factory(_make_task)
        token = _running.set(self)
        try:
            return await self.driven(work, "the request")
        finally:
            _running.reset(token)

    @types.coroutine
    def driven(self, work: Coroutine[Any, Any, Any], name: str) -> Generator[Any, Any, Any]:
        """Run a coroutine as it is awaited, with one of its awaits failing."""
        error: BaseException | None = None
        while True:
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as end:
                return end.value
            try:
                yield waits_for
                error = None
            except BaseException as raised:  # noqa: BLE001 (it is passed on)
                error = raised
            self.count += 1
            if self.count - 1 == self._number:
                self.where, error = f"{name}: {work.__qualname__}", self._fault


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
    failing = _running.get()
    if failing is not None:
        work = failing.driven(work, "a task")
    return asyncio.Task(_as_coroutine(work) if failing is not None else work, loop=loop, **more)


async def _as_coroutine(work: Any) -> Any:
    return await work

"""Processes that read bodies: JSON, chat template and tokenizer, within limits on time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bounded_process import (
    BoundedProcess,
    Bounds,
    TooCostly,
    WorkerKilled,
    bound_memory,
    serve,
)
from lucid_deploy.errors import LucidError
from lucid_deploy.serving.errors import ApiError, unavailable
from lucid_deploy.serving.fields import Kind
from lucid_deploy.serving.requests import PreparedRequest, ReaderSetup, RequestReader
from lucid_deploy.serving.tool_formats import tool_format_named, with_tools

log = logging.getLogger("lucid_deploy.serving")
T = TypeVar("T")
WHAT = "Reading this request (parsing, chat template, tokenizing)"
LARGE = 16 << 10  # bytes; a body of this size never takes the last free reader
# Nor do bodies with a grammar to compile, with many words to tokenize, or with escapes that could spell these names.
COSTLY = (b"guided_", b"schema", b"tools", b"bad_words", b"\\u")
ABANDONED_SECONDS = 1.0  # for a reader to finish a cancelled request
RESTART_SECONDS = 1.0  # between attempts to start a reader that does not start


class ReadReply(msgspec.Struct, frozen=True):
    """The answer to a body: a request, or the fields of an ApiError."""

    request: PreparedRequest | None = None
    error: dict[str, Any] | None = None


def reader_process(setup: ReaderSetup) -> BoundedProcess:
    """Return a process that reads for a setup, not started; its ``ready`` says whether it can read chats."""
    memory = max(256 << 20, 64 * setup.body_bytes)  # parsed, "[]," is 80 bytes for 3
    bounds = Bounds(setup.reading_seconds, memory)
    return BoundedProcess(__name__, msgspec.msgpack.encode(setup), bounds, WHAT)


def open_reader(data: bytes, bounds: Bounds) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Load what a reader process needs; return whether it can read chats, and what reads a body."""
    setup = msgspec.msgpack.decode(data, type=ReaderSetup)
    directory = Path(setup.directory)
    tokenizer = TextTokenizer(directory, bound_time=False)
    bound_memory(bounds.memory)  # before the template: compiling it evaluates its constants
    form = None if setup.tool_format is None else tool_format_named(setup.tool_format)
    templates = load_chat_templates(directory, None if form is None else partial(with_tools, form=form))
    reader = RequestReader(setup, tokenizer, templates)

    def read(frame: bytes) -> bytes:
        try:
            reply = ReadReply(reader.read(*msgspec.msgpack.decode(frame, type=tuple[Kind, bytes])))
        except ApiError as error:
            reply = ReadReply(error=vars(error))
        return msgspec.msgpack.encode(reply)

    return msgspec.msgpack.encode(templates is not None), read


class ReaderPool:
    """Reads bodies, as many at once as there are processes; others wait in order, but clients take turns.

    Bodies that may be costly to read leave one reader to the others, if there are several.
    """

    def __init__(self, setup: ReaderSetup, count: int) -> None:
        self._readers = [reader_process(setup) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count, "lucid-reader")
        self._idle: asyncio.Queue[BoundedProcess] = asyncio.Queue()
        self._costly = asyncio.Semaphore(max(1, count - 1))
        # Of each client and kind of body, so that nobody waits for all bodies of another client.
        self._turns: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_chat_template(self) -> bool | None:
        """Whether chats can be read; None until a process has started."""
        ready = next((reader.ready for reader in self._readers if reader.ready is not None), None)
        return None if ready is None else msgspec.msgpack.decode(ready, type=bool)

    async def start(self) -> None:
        """Start all processes; raise a LucidError if the tokenizer or the chat template cannot be read."""
        await asyncio.gather(*(self._in_thread(reader.start) for reader in self._readers))
        self.start_in_background()

    def start_in_background(self) -> None:
        """Start all processes, again and again until they start; requests wait for them."""
        for reader in self._readers:
            self._do(self._release(reader))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(reader.close) for reader in self._readers))
        self._threads.shutdown()

    async def read(self, body: bytes, kind: Kind, client: str = "") -> PreparedRequest:
        costly = len(body) >= LARGE or any(word in body for word in COSTLY)
        turn = self._turns.setdefault((client, costly), asyncio.Semaphore(max(1, len(self._readers) - costly)))
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(turn)
            if costly:
                await held.enter_async_context(self._costly)
            reader = await self._idle.get()
            request: asyncio.Future[PreparedRequest] = asyncio.get_running_loop().create_future()
            self._do(self._read(reader, msgspec.msgpack.encode((kind, body)), request, held.pop_all()))
            return await request

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(
        self,
        reader: BoundedProcess,
        body: bytes,
        request: asyncio.Future[PreparedRequest],
        held: contextlib.AsyncExitStack,
    ) -> None:
        """Read a body. What it holds is free when the reader is, and not when the client leaves."""
        async with held:
            reading = asyncio.ensure_future(self._ask(reader, body))
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio would log it
            await asyncio.wait([reading, request], return_when=asyncio.FIRST_COMPLETED)
            if request.done():  # it was cancelled
                await asyncio.wait([reading], timeout=ABANDONED_SECONDS)
                if reading.cancel():
                    reader.kill()
            elif (fault := reading.exception()) is not None:
                request.set_exception(fault)
            else:
                request.set_result(reading.result())
            await self._release(reader)

    async def _release(self, reader: BoundedProcess) -> None:
        """Give a reader the next body; start it first if it has died, again and again until it starts."""
        while True:
            try:
                await self._in_thread(reader.start)
                break
            except (LucidError, OSError) as error:
                log.error("A reader process does not start: %s", error)
                await asyncio.sleep(RESTART_SECONDS)
        self._idle.put_nowait(reader)

    async def _ask(self, reader: BoundedProcess, body: bytes) -> PreparedRequest:
        try:
            reply = msgspec.msgpack.decode(await self._in_thread(reader.ask, body), type=ReadReply)
        except TooCostly as error:
            raise ApiError(400, str(error), "too_costly") from error
        except WorkerKilled as error:
            log.warning("A reader process was killed while it read a request; another one starts.")
            raise unavailable(str(error), "reader_killed") from error
        if reply.request is None:
            raise ApiError(**reply.error or {})
        return reply.request

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


if __name__ == "__main__":
    serve(open_reader)

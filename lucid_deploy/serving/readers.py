"""A fixed number of reader processes, and the queue in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine
from typing import Any

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.errors import ApiError, unavailable
from lucid_deploy.serving.reader_process import (
    COMMAND,
    ENVIRONMENT,
    HEADER_BYTES,
    KILLED,
    LAST_WORDS_SECONDS,
    MEANT_FOR_SERVER,
    BodyPrepared,
    BodyRefused,
    ReaderReady,
    ReaderSetup,
    ReadTask,
    Reply,
    not_started,
    refusal_of_death,
    too_costly,
)
from lucid_deploy.serving.requests import Kind, PreparedRequest

log = logging.getLogger("lucid_deploy.serving")
LARGE = 64 << 10  # bytes of body from which it may not take the last reader
ABANDONED_SECONDS = 1.0  # that a reader gets to finish what nobody waits for
WALL_SECONDS = 60.0  # for a body, however busy the machine is
RESTART_SECONDS = 1.0  # between attempts to start a reader that does not start


class ReaderDied(Exception):
    """The process ended without a reply; ``status`` is its exit status, as :mod:`subprocess` has it."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class Reader:
    """One reader process.

    Attributes:
        has_chat_template: Whether it can read chats; None until it has started.

    Args:
        setup: What it reads for.
    """

    def __init__(self, setup: ReaderSetup) -> None:
        self._setup = setup
        self._process: asyncio.subprocess.Process | None = None
        self._asked = False
        self.has_chat_template: bool | None = None

    @property
    def usable(self) -> bool:
        """Whether the process runs and owes no reply, which the next request would take for its own."""
        return self._process is not None and self._process.returncode is None and not self._asked

    @property
    def pid(self) -> int | None:
        """The process's id; None before the start."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        It has a session of its own, so that it gets no signal that a terminal or a shell sends to the server's group.
        One that is sent to every process of a service ends it before it ignores such signals, and it is started again:
        the server has got that signal too, and ends as it does at any other time.

        Raises:
            LucidError: The tokenizer or the chat template cannot be read, or the process does not start.
        """
        pipe = asyncio.subprocess.PIPE
        while True:
            self._process = process = await asyncio.create_subprocess_exec(
                *COMMAND,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )
            try:
                reply = await self._ask(self._setup)
                break
            except ReaderDied as error:
                if error.status is None or -error.status not in MEANT_FOR_SERVER:
                    raise not_started(error.status, await _last_words(process)) from error
        if not isinstance(reply, ReaderReady):
            raise LucidError(reply.message if isinstance(reply, BodyRefused) else str(reply))
        self.has_chat_template = reply.has_chat_template

    async def read(self, task: ReadTask) -> Reply:
        """Have a body read. Do not cancel this: the process would still be at it.

        Raises:
            ReaderDied: The process ended.
        """
        return await self._ask(task)

    async def stop(self, kill: bool = False) -> None:
        """End the process: at the end of what it does, or at once."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if kill:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def _ask(self, message: msgspec.Struct) -> Reply:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        data = msgspec.msgpack.encode(message)
        self._asked = True  # until the reply is here, whatever is raised
        try:
            process.stdin.write(len(data).to_bytes(HEADER_BYTES, "big"))
            process.stdin.write(data)
            await process.stdin.drain()
            size = int.from_bytes(await process.stdout.readexactly(HEADER_BYTES), "big")
            reply = await process.stdout.readexactly(size)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise ReaderDied(await self._end(process)) from error
        self._asked = False
        return msgspec.msgpack.decode(reply, type=Reply)

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Return the exit status of a process whose pipes broke; it has ended, or is ended."""
        try:
            async with asyncio.timeout(ABANDONED_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()


async def _last_words(process: asyncio.subprocess.Process) -> bytes:
    """Return what an ended process wrote to stderr; nothing where another process keeps the pipe open."""
    assert process.stderr is not None
    try:
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            return await process.stderr.read()
    except TimeoutError:
        return b""


async def check_setup(setup: ReaderSetup) -> None:
    """Try whether a reader starts.

    Raises:
        LucidError: The tokenizer or the chat template cannot be read.
    """
    reader = Reader(setup)
    try:
        await reader.start()
    finally:
        await reader.stop(kill=True)


class ReaderPool:
    """Reads bodies, as many at once as there are processes; others wait in order, and leave the queue when cancelled.

    Large bodies leave one reader to the others, if there are several.

    Args:
        setup: What is read for.
        count: Processes.
    """

    def __init__(self, setup: ReaderSetup, count: int) -> None:
        self._setup = setup
        self._readers = [Reader(setup) for _ in range(count)]
        self._free: asyncio.Queue[Reader] = asyncio.Queue()
        self._large = asyncio.Semaphore(max(1, count - 1))
        self._background: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int | None]:
        """The processes' ids."""
        return [reader.pid for reader in self._readers]

    @property
    def has_chat_template(self) -> bool | None:
        """Whether chats can be read; None until a process has started."""
        return next((each for reader in self._readers if (each := reader.has_chat_template) is not None), None)

    @property
    def free(self) -> int:
        """How many wait for a body."""
        return self._free.qsize()

    async def start(self) -> None:
        """Start all processes.

        Raises:
            LucidError: The tokenizer or the chat template cannot be read.
        """
        await asyncio.gather(*(reader.start() for reader in self._readers))
        for reader in self._readers:
            self._free.put_nowait(reader)

    def start_in_background(self) -> None:
        """Start all processes, again and again until they start; requests wait for them."""
        for reader in self._readers:
            self._in_background(self._restart_and_free(reader))

    async def close(self) -> None:
        """End all processes."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(reader.stop(kill=True) for reader in self._readers))

    async def read(self, body: bytes, kind: Kind) -> PreparedRequest:
        """Read a body of one kind.

        Raises:
            ApiError: It is wrong, or too costly to read.
        """
        async with self._large if len(body) >= LARGE else contextlib.nullcontext():
            reader = await self._free.get()
            work = asyncio.ensure_future(self._read(reader, ReadTask(kind, body)))
            try:
                reply = await asyncio.shield(work)
            finally:
                self._give_back(reader, work)
        if isinstance(reply, BodyPrepared):
            return reply.request
        if isinstance(reply, BodyRefused) and reply.code == KILLED:
            raise unavailable(reply.message, KILLED)
        if isinstance(reply, BodyRefused):
            raise ApiError(reply.status, reply.message, reply.code, reply.param)
        log.error("A reader failed by a fault of its own: %s", reply)
        raise ApiError(500, "The server failed on this request; see its log.", "internal_error")

    async def _read(self, reader: Reader, task: ReadTask) -> Reply:
        try:
            async with asyncio.timeout(WALL_SECONDS):
                return await reader.read(task)
        except TimeoutError:
            await reader.stop(kill=True)
            return too_costly(f"took more than {WALL_SECONDS:g} s")
        except ReaderDied as error:
            log.warning("A reader process ended while it read a request (%s); another one starts.", error)
            return refusal_of_death(error.status, self._setup.limits)

    def _give_back(self, reader: Reader, work: asyncio.Future[Reply]) -> None:
        if work.done() and reader.usable:
            self._free.put_nowait(reader)
        else:
            self._in_background(self._recover(reader, work))

    async def _recover(self, reader: Reader, work: asyncio.Future[Reply]) -> None:
        """Free a reader that still works on a cancelled request, that has died or whose reply did not come through."""
        await asyncio.wait([work], timeout=ABANDONED_SECONDS)
        if not (work.done() and reader.usable):
            work.cancel()
            await reader.stop(kill=True)
            await self._restart_and_free(reader)
        else:
            self._free.put_nowait(reader)

    async def _restart_and_free(self, reader: Reader) -> None:
        while True:
            try:
                await reader.start()
                self._free.put_nowait(reader)
                return
            except (LucidError, OSError) as error:
                log.error("A reader process does not start: %s", error)
                await reader.stop(kill=True)
                await asyncio.sleep(RESTART_SECONDS)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

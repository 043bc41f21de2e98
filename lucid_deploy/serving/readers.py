"""Processes that read request bodies (parse, apply the chat template, tokenize) within limits on time and memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bounded_process import BoundedProcess, Bounds, TooCostly, WorkerKilled, bound_memory, serve
from lucid_deploy.serving.errors import ApiError, unavailable
from lucid_deploy.serving.fields import Kind
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.requests import ReaderSetup, RequestReader

log = logging.getLogger("lucid_deploy.serving")
WHAT = "Reading this request (parsing, chat template, tokenizing)"
LARGE = 16 << 10  # bytes; a body of this size or more counts as costly, see ReaderPool
# Bodies with these texts do, too: grammars to compile, words to tokenize, escapes that could hide these names.
COSTLY = (b"guided_", b"schema", b"tools", b"bad_words", b"\\u")
ABANDONED_SECONDS = 1.0  # that a reader gets to finish a cancelled request before it is killed


def reader_process(setup: ReaderSetup) -> BoundedProcess:
    """Return a process, not started, that reads requests; its ``ready`` says whether the model has a chat template."""
    memory = max(256 << 20, 64 * setup.body_bytes)  # parsing needs much memory: the 3 bytes "[]," become 80
    return BoundedProcess(__name__, setup, Bounds(setup.reading_seconds, memory), WHAT)


def open_reader(setup: ReaderSetup, bounds: Bounds) -> tuple[bool, Callable[[tuple[Kind, bytes]], Job | ApiError]]:
    """Load tokenizer and chat template; return whether there is a template, and the function that reads a body."""
    directory = Path(setup.directory)
    tokenizer = TextTokenizer(directory)
    bound_memory(bounds.memory)  # before the template: compiling it evaluates its constants
    templates = load_chat_templates(directory)
    reader = RequestReader(setup, tokenizer, templates)

    def read(task: tuple[Kind, bytes]) -> Job | ApiError:
        try:
            return reader.read(*task)
        except ApiError as error:
            return error

    return templates is not None, read


class ReaderPool:
    """Reads bodies in parallel, one per process; the others wait in order, but clients take turns.

    If there are several readers, bodies that may be costly to read never occupy all of them.
    """

    def __init__(self, setup: ReaderSetup, count: int) -> None:
        self._readers = [reader_process(setup) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count, "lucid-reader")
        self._idle: asyncio.Queue[BoundedProcess] = asyncio.Queue()
        for reader in self._readers:
            self._idle.put_nowait(reader)
        self._costly = asyncio.Semaphore(max(1, count - 1))
        # Key: client, and whether the body is costly. These bound how many bodies of one client others wait for.
        self._turns: dict[tuple[str, bool], asyncio.Semaphore] = {}

    @property
    def has_chat_template(self) -> bool | None:
        """Whether the model has a chat template; None until a process has started."""
        return next((reader.ready for reader in self._readers if reader.ready is not None), None)

    def start(self) -> None:
        """Start all processes; raise a LucidError if the tokenizer or the chat template cannot be read."""
        list(self._threads.map(BoundedProcess.start, self._readers))

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._threads.shutdown()

    async def read(self, body: bytes, kind: Kind, client: str = "") -> Job:
        costly = len(body) >= LARGE or any(word in body for word in COSTLY)
        turn = self._turns.setdefault((client, costly), asyncio.Semaphore(max(1, len(self._readers) - costly)))
        async with turn, self._costly if costly else nullcontext():
            reader, loop = await self._idle.get(), asyncio.get_running_loop()
            asked = loop.run_in_executor(self._threads, _ask, reader, (kind, body))
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:  # the semaphores are held until the reader is free
                await asyncio.wait([asked], timeout=ABANDONED_SECONDS)
                if not asked.done():
                    reader.kill()
                    await asyncio.wait([asked])
                raise
            finally:
                self._idle.put_nowait(reader)


def _ask(reader: BoundedProcess, task: tuple[Kind, bytes]) -> Job:
    """Let a process read a body; raise an ApiError if that fails. Restart the process if it died."""
    try:
        found: Job | ApiError = reader.ask(task)
    except TooCostly as fault:
        raise ApiError(400, str(fault), "too_costly") from fault
    except WorkerKilled as fault:
        log.warning("A reader process was killed while it read a request; another one starts.")
        raise unavailable(str(fault), "reader_killed") from fault
    finally:
        reader.start()
    if isinstance(found, ApiError):
        raise found
    return found


if __name__ == "__main__":
    serve(open_reader)

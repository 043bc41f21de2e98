"""The thread that owns the batcher: commands come in by a queue, events go out to the callers' event loops."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.batching import Batcher, Finished, Mark, Request, Token

log = logging.getLogger("lucid_deploy.serving")
CHECK_SECONDS = 1.0
MOST_CALLS = 4
T = TypeVar("T")


class QueueFullError(Exception):
    """There is no room; ``retry_after`` is a guess in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The queue is full.")
        self.retry_after = retry_after


class EngineDownError(Exception):
    """The engine is not running: still loading, stopped, or ended by an error."""


@dataclass(frozen=True, slots=True)
class EngineFault:
    """The end of a generation by a fault: ``invalid`` (refused by the batcher) or ``down`` (the server's).

    The engine ended, or there is no thread for what this generation needs.
    """

    kind: str
    message: str


if TYPE_CHECKING:
    EngineEvent = Token | Finished | Mark | EngineFault
_Command = tuple[str, "JobEvents | None", int, Any]  # name, whose, row, a request or what else it needs


class JobEvents:
    """The events of several generations that were asked for together, numbered from 0. Belongs to one event loop.

    Attributes:
        timed: Whether all marks are among the events, and not only those that say what was reused.
    """

    def __init__(self, engine: Engine, rows: int, timed: bool = False) -> None:
        self.timed = timed
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._open = set(range(rows))
        self._events: asyncio.Queue[list[tuple[int, EngineEvent]]] = asyncio.Queue()

    async def next(self) -> list[tuple[int, EngineEvent]]:
        """Return the next events as (number, event), as soon as there are any."""
        return await self._events.get()

    def cancel(self, row: int) -> None:
        """End one generation and free its row; nothing further comes from it."""
        if row in self._open:
            self._open.discard(row)
            self._engine.command(("cancel", self, row, None))

    def close(self) -> None:
        """End everything that still runs."""
        for row in list(self._open):
            self.cancel(row)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that its events go to."""
        return self._loop

    def deliver(self, events: list[tuple[int, EngineEvent]]) -> None:
        """Take events over; runs in the event loop."""
        from lucid_deploy.batching import Finished

        kept = [(row, event) for row, event in events if row in self._open]
        self._open -= {row for row, event in kept if isinstance(event, (Finished, EngineFault))}
        if kept:
            self._events.put_nowait(kept)


class Engine:
    """Runs a batcher in a thread of its own.

    Args:
        open_batcher: Loads the model and returns the batcher; called in the thread.
        check: Raises if the engine must not go on; called in the thread before steps, at most every
            :data:`CHECK_SECONDS`.
    """

    def __init__(
        self,
        open_batcher: Callable[[], Batcher],
        rows: int,
        max_queue: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.rows = rows
        self.max_queue = max_queue
        self.state = "loading"
        self.error: BaseException | None = None
        self._open_batcher = open_batcher
        self._check = check
        self._checked = 0.0  # when, by time.monotonic
        self._step_began: float | None = None  # when, by time.monotonic; None between steps
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over state and the count of admitted generations
        self._admitted = 0
        self._calls = 0
        self._seconds = 1.0  # a generation's usual duration, queue included
        self._running: dict[int, tuple[JobEvents, int, float, int]] = {}
        self._numbers: dict[tuple[JobEvents, int], int] = {}
        self._cached: dict[int, int] = {}  # tokens in the cache of each running row
        self._gauges = {"rows": float(rows)}
        self._thread = threading.Thread(target=self._main, name="lucid-engine", daemon=True)
        self._when_loaded: Callable[[], None] = lambda: None

    def start(self, when_loaded: Callable[[], None] = lambda: None) -> None:
        """Start loading.

        Args:
            when_loaded: Called in the thread once the state is ``ready``, or ``dead`` with ``error`` set.
        """
        self._when_loaded = when_loaded
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """End the thread; what still runs gets an error.

        Returns:
            Whether it ended in time; it does not while a step of the model runs.
        """
        self._commands.put(("stop", None, 0, None))
        for _ in range(1000):  # a signal may have ended start() before the thread runs
            if self._thread.is_alive() or self._thread not in threading.enumerate():
                break
            time.sleep(0.001)
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """How long the step has run that the model runs now; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def capacity(self) -> int:
        """Most generations that are taken at once."""
        return self.rows + self.max_queue

    @property
    def admitted(self) -> int:
        """Generations that are taken now, running or waiting."""
        return self._admitted

    def gauges(self) -> dict[str, float]:
        """Return the batcher's state after its last step, by the names in :mod:`lucid_deploy.serving.metrics`."""
        return dict(self._gauges)

    def submit(self, requests: list[Request], timed: bool = False) -> JobEvents:
        """Queue generations, all or none. Call it in an event loop.

        Args:
            timed: Whether all of the batcher's marks come among the events, and not only those of reused tokens.
        """
        with self._lock:
            if self.state != "ready":
                raise EngineDownError("The model is still loading." if self.state == "loading" else "The engine ended.")
            if self._admitted + len(requests) > self.capacity:
                raise QueueFullError(min(60, max(1, math.ceil(self._seconds))))
            self._admitted += len(requests)
            stream = JobEvents(self, len(requests), timed)
            for row, request in enumerate(requests):
                self._commands.put(("submit", stream, row, request))
        return stream

    def call(self, function: Callable[[Batcher], T]) -> Future[T]:
        """Have a function run in the thread, between two steps; at most :data:`MOST_CALLS` wait at once."""
        future: Future[T] = Future()
        with self._lock:
            if self.state != "ready":
                raise EngineDownError("The model is still loading." if self.state == "loading" else "The engine ended.")
            if self._calls >= MOST_CALLS:
                raise QueueFullError(1)
            self._calls += 1
            self._commands.put(("call", None, 0, (function, future)))
        future.add_done_callback(lambda _: self._call_done())
        return future

    def _call_done(self) -> None:
        with self._lock:
            self._calls -= 1

    def command(self, command: _Command) -> None:
        """Leave a command for the thread."""
        self._commands.put(command)

    def _main(self) -> None:
        try:
            batcher = self._open_batcher()
            self._observe(batcher)  # who finds it ready finds its state
            with self._lock:
                self.state = "ready"
            self._when_loaded()
            while self._take_commands(batcher):
                self._check_now_and_then()
                self._step_began = time.monotonic()
                for events in batcher.parts():
                    addressed = self._addressed([*batcher.marks, *events])
                    self._observe(batcher)  # who has an answer finds what it took
                    self._send(addressed)
                    self._step_began = time.monotonic()
                self._step_began = None
        except BaseException as error:  # noqa: BLE001 (whatever ends the thread is what its clients must hear of)
            self._die(error)
        else:
            self._die(None)

    def _check_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._check()
            self._checked = now

    def _take_commands(self, batcher: Batcher) -> bool:
        """Carry out what was asked for since the last step; wait for something if there is nothing to do."""
        while True:
            if batcher.idle:
                self._observe(batcher)
            try:
                kind, stream, row, request = self._commands.get(block=batcher.idle)
            except queue.Empty:
                return True
            if kind == "stop":
                return False
            if kind == "call":
                self._step_began = time.monotonic()
                _carry_out(batcher, *request)
                self._step_began = None
                continue
            assert stream is not None
            if kind == "cancel":
                self._cancel(batcher, stream, row)
                continue
            assert request is not None
            try:
                number = batcher.submit(request)
            except LucidError as error:
                self._release(1)
                self._send([(stream, row, EngineFault("invalid", str(error)))])
                continue
            self._running[number] = (stream, row, time.monotonic(), len(request.prompt_ids))
            self._numbers[stream, row] = number

    def _cancel(self, batcher: Batcher, stream: JobEvents, row: int) -> None:
        number = self._numbers.pop((stream, row), None)
        if number is not None:  # else it ended meanwhile
            del self._running[number]
            self._cached.pop(number, None)
            batcher.cancel(number)
            self._release(1)

    def _addressed(self, events: Sequence[Mark | Token | Finished]) -> list[tuple[JobEvents, int, Any]]:
        """Note what events mean for the engine; return them with whom they are for."""
        from lucid_deploy.batching import Finished, Mark

        out: list[tuple[JobEvents, int, Any]] = []
        for event in events:
            found = self._running.get(event.request)
            if found is None:  # cancelled
                continue
            stream, row, started, prompt = found
            if isinstance(event, Mark):
                if stream.timed or event.reused:
                    out.append((stream, row, event))
                continue
            if isinstance(event, Finished):
                del self._running[event.request], self._numbers[stream, row]
                self._cached.pop(event.request, None)
                self._release(1)
                self._seconds += 0.2 * (time.monotonic() - started - self._seconds)
            else:
                self._cached[event.request] = self._cached.get(event.request, prompt) + 1
            out.append((stream, row, event))
        return out

    def _send(self, events: list[tuple[JobEvents, int, Any]]) -> None:
        grouped: dict[asyncio.AbstractEventLoop, dict[JobEvents, list[tuple[int, Any]]]] = {}
        for stream, row, event in events:
            grouped.setdefault(stream.loop, {}).setdefault(stream, []).append((row, event))
        for loop, streams in grouped.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, streams)
            except RuntimeError:  # the loop is closed: nobody listens any more
                log.debug("An event loop closed while generations ran.")

    def _release(self, count: int) -> None:
        with self._lock:
            self._admitted -= count

    def _observe(self, batcher: Batcher) -> None:
        self._gauges = {
            "queue_length": float(batcher.waiting),
            "active_rows": float(batcher.active),
            "rows": float(self.rows),
            "cache_tokens": float(sum(self._cached.values())),
            "prefix_cache_tokens": float(batcher.cached_tokens),
            "prompt_tokens_computed": float(batcher.prompt_tokens_computed),
            "prompt_tokens_reused": float(batcher.prompt_tokens_reused),
            "draft_tokens_proposed": float(batcher.drafts.proposed),
            "draft_near_ties": float(batcher.drafts.near_ties),
        }

    def _die(self, error: BaseException | None) -> None:
        loading = self.state == "loading"
        unanswered: list[Future[Any]] = []
        with self._lock:  # afterwards nothing more is queued
            self.state = "dead"
            self.error = error
            left = [(stream, row) for stream, row, _, _ in self._running.values()]
            while True:
                try:
                    kind, stream, row, request = self._commands.get_nowait()
                except queue.Empty:
                    break
                if kind == "submit" and stream is not None:
                    left.append((stream, row))
                if kind == "call":
                    unanswered.append(request[1])
            self._running.clear()
            self._numbers.clear()
            self._cached.clear()
            self._admitted = 0
            nothing = {"queue_length": 0.0, "active_rows": 0.0, "cache_tokens": 0.0, "prefix_cache_tokens": 0.0}
            self._gauges = {**self._gauges, **nothing}
        for future in unanswered:
            future.set_exception(EngineDownError("The engine ended."))
        message = "The server is shutting down."
        if isinstance(error, LucidError):
            message = f"The engine ended: {error}"
            if not loading:  # else the command says it
                log.critical("%s", message)
        elif error is not None:
            message = "The engine ended by an error; see the server's log."
            if not loading:
                log.critical("The engine ended: %s: %s", type(error).__name__, error, exc_info=error)
        self._send([(stream, row, EngineFault("down", message)) for stream, row in left])
        if loading:
            self._when_loaded()


def _carry_out(batcher: Batcher, function: Callable[[Batcher], Any], future: Future[Any]) -> None:
    """Call a function for somebody; its faults are theirs, and the engine goes on."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(batcher))
    except Exception as error:  # noqa: BLE001 (it is raised where the result is waited for)
        future.set_exception(error)


def _deliver_all(streams: dict[JobEvents, list[tuple[int, Any]]]) -> None:
    for stream, events in streams.items():
        stream.deliver(events)

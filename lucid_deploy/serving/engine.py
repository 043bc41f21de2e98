"""The engine: a thread that loads a model and runs its batcher; it reads a queue of commands and sends events."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from lucid_deploy.artifact import Artifact, check_hashes, open_artifact
from lucid_deploy.artifact.read import ArtifactWatch
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.serving.errors import ApiError, queue_full, unavailable

if TYPE_CHECKING:
    from lucid_deploy.batching import Batcher, Finished, Request, Token
    from lucid_deploy.runtimes.session import Session

    EngineEvent = Token | Finished | ApiError  # the last one of a generation is Finished or an ApiError

log = logging.getLogger("lucid_deploy.serving")
CHECK_SECONDS = 1.0  # shortest time between two calls of ``Engine``'s ``check``
DOWN = "engine_down"  # error code while the engine loads, and after it has ended
PREFIX_BYTES, PREFIX_TOKENS = 1 << 30, 1 << 16  # default limits of the prefix store; the smaller one applies


@dataclass(frozen=True)
class EngineOptions:
    """Which model to run, how, and how many generations may run and wait."""

    directory: str  # of the artifact
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    rows: int = 8  # generations that run at once
    max_queue: int = 64  # further generations that may wait
    share_queue: bool = False  # whether a client with several requests is limited to all rows and half of the queue
    prefill_budget: int = 32  # most prompt tokens per step while other rows decode, or 6 per request if that is more
    prefix_tokens: int | None = None  # most tokens of earlier texts stored for reuse; None: see _prefix_tokens
    check: bool = True  # whether to verify the hashes of all files before the model is loaded
    speculate: str = "off"  # how drafts are made, see :func:`~lucid_deploy.generation.drafting.open_drafters`
    draft: str | None = None  # artifact of the draft model, if ``speculate`` is ``draft``
    most_step_seconds: float = 300.0  # a step of the model that takes longer fails health checks and new requests


class _Command(NamedTuple):
    """A command to the engine's thread: ``submit`` or ``cancel`` a generation, or ``stop``."""

    kind: str
    events: JobEvents | None = None  # of the job that the generation belongs to
    row: int = 0
    request: Any = None  # with ``submit``


class _Running(NamedTuple):
    """A generation in the batcher."""

    events: JobEvents
    row: int
    client: str
    started: float  # by time.monotonic


class JobEvents:
    """The events of one job, whose generations are numbered from 0. Belongs to one event loop."""

    def __init__(self, commands: queue.SimpleQueue[_Command], rows: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._commands, self._rows = commands, rows
        self.numbers: dict[int, int] = {}  # generation → its number in the batcher; for the engine's thread only
        self.queue: asyncio.Queue[list[tuple[int, EngineEvent]]] = asyncio.Queue()

    async def next(self) -> list[tuple[int, EngineEvent]]:
        """Wait for the next events; return each with the number of its generation."""
        return await self.queue.get()

    def cancel(self, row: int) -> None:
        """Ask the engine to end a generation, unless it has ended, and free its row; its events may still arrive."""
        self._commands.put(_Command("cancel", self, row))

    def close(self) -> None:
        for row in range(self._rows):
            self.cancel(row)


class Engine:
    """Runs a batcher in a thread of its own.

    Args:
        open_batcher: Loads the model and returns the batcher; called in the thread.
        rows: Most generations that run at once, the same number as the batcher's.
        max_queue: Most generations that wait for a row.
        check: Raises if the engine must not go on; called in the thread, at most once per :data:`CHECK_SECONDS`.
        share_queue: Whether a client with several requests may have at most ``rows + max_queue // 2`` generations.
    """

    def __init__(
        self,
        open_batcher: Callable[[], Batcher],
        rows: int,
        max_queue: int,
        check: Callable[[], None] = lambda: None,
        share_queue: bool = False,
    ) -> None:
        self.rows = rows
        self.capacity = rows + max_queue  # most generations that run or wait
        self.state = "loading"
        self.error: BaseException | None = None
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._most_each = rows + max_queue // 2 if share_queue else self.capacity
        self._open_batcher, self._check = open_batcher, check
        self._checked = 0.0  # time of the last check, by time.monotonic
        self._step_began: float | None = None  # when the step began or last yielded events; None between steps
        self._lock = threading.Lock()  # protects the state and the counts of admitted generations
        self._admitted: Counter[str] = Counter()  # generations that run or wait, by client
        self._seconds = 1.0  # moving average: from a generation's submission to its end, the wait for a row included
        self._running: dict[int, _Running] = {}  # by number in the batcher
        self._gauges = {"rows": float(rows)}
        self._thread = threading.Thread(target=self._main, name="lucid-engine", daemon=True)
        self._when_loaded: Callable[[], object] = lambda: None

    def start(self, when_loaded: Callable[[], object] = lambda: None) -> None:
        """Start loading; call ``when_loaded`` in the thread when the state is ``ready``, or ``dead`` with ``error``."""
        self._when_loaded = when_loaded
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop the thread; unfinished generations get an error. Return False if it still runs after ``timeout`` s."""
        self._commands.put(_Command("stop"))
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """Seconds since the batcher's step began or last yielded events; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def gauges(self) -> dict[str, float]:
        return dict(self._gauges)

    def submit(self, requests: list[Request]) -> JobEvents:
        """Queue a job's generations and return its events; ApiError if not ready or too many. Needs an event loop."""
        client = requests[0].client
        with self._lock:
            if self.state != "ready":
                message = "The model is still loading." if self.state == "loading" else "The engine ended."
                raise unavailable(message, DOWN)
            total, own = self._admitted.total(), self._admitted[client]
            too_many = own and own + len(requests) > self._most_each  # a client's only job may exceed this limit
            if total + len(requests) > self.capacity or too_many:
                raise queue_full(min(60, max(1, math.ceil(self._seconds))))
            self._admitted[client] += len(requests)
            events = JobEvents(self._commands, len(requests))
            for row, request in enumerate(requests):
                self._commands.put(_Command("submit", events, row, request))
        return events

    def _main(self) -> None:
        try:
            batcher = self._open_batcher()
            self._observe(batcher)  # before the state is ready, so that gauges are never missing
            with self._lock:
                self.state = "ready"
            self._when_loaded()
            while self._take_commands(batcher):
                if time.monotonic() - self._checked >= CHECK_SECONDS:
                    self._check()
                    self._checked = time.monotonic()
                self._step_began = time.monotonic()
                for events in batcher.parts():
                    addressed = self._addressed(events)
                    self._observe(batcher)  # before events are sent, so that gauges include them
                    _send(addressed)
                    self._step_began = time.monotonic()
                self._step_began = None
        except BaseException as error:  # noqa: BLE001 (whatever ends the thread, its clients must get an error)
            self._die(error)
        else:
            self._die(None)

    def _take_commands(self, batcher: Batcher) -> bool:
        """Process all queued commands; if the batcher is idle, wait for one. Return False on ``stop``."""
        while True:
            if batcher.idle:
                self._observe(batcher)
            try:
                kind, events, row, request = self._commands.get(block=batcher.idle)
            except queue.Empty:
                return True
            if kind == "stop":
                return False
            assert events is not None
            if kind == "cancel":
                running = self._running.pop(events.numbers.get(row, -1), None)
                if running is not None:  # otherwise the generation has already ended
                    batcher.cancel(events.numbers[row])
                    self._release(running.client)
                continue
            try:
                number = batcher.submit(request)
            except LucidError as error:
                self._release(request.client)
                _send({events: [(row, ApiError(400, str(error)))]})
                continue
            self._running[number] = _Running(events, row, request.client, time.monotonic())
            events.numbers[row] = number

    def _addressed(self, events: Sequence[Token | Finished]) -> dict[JobEvents, list[tuple[int, Any]]]:
        """Return the events grouped by job; stop counting generations that have finished."""
        from lucid_deploy.batching import Finished

        jobs: dict[JobEvents, list[tuple[int, Any]]] = defaultdict(list)
        for event in events:
            running = self._running.get(event.request)
            if running is None:  # cancelled
                continue
            if isinstance(event, Finished):
                del self._running[event.request]
                self._release(running.client)
                self._seconds += 0.2 * (time.monotonic() - running.started - self._seconds)
            jobs[running.events].append((running.row, event))
        return jobs

    def _release(self, client: str) -> None:
        with self._lock:
            self._admitted[client] -= 1

    def _observe(self, batcher: Batcher) -> None:
        self._gauges = {
            "queue_length": float(batcher.waiting),
            "active_rows": float(batcher.active),
            "rows": float(self.rows),
            "cache_tokens": float(batcher.cache_tokens),
            "prefix_cache_tokens": float(batcher.cached_tokens),
            "prompt_tokens_computed": float(batcher.prompt_tokens_computed),
            "prompt_tokens_reused": float(batcher.prompt_tokens_reused),
            "draft_tokens_proposed": float(batcher.drafts.proposed),
            "draft_near_ties": float(batcher.drafts.near_ties),
        }

    def _die(self, error: BaseException | None) -> None:
        loading = self.state == "loading"
        left = [(running.events, running.row) for running in self._running.values()]
        with self._lock:  # no generation is submitted after this
            self.state, self.error = "dead", error
            while not self._commands.empty():
                command = self._commands.get()
                if command.kind == "submit" and command.events is not None:
                    left.append((command.events, command.row))
            nothing = ("queue_length", "active_rows", "cache_tokens", "prefix_cache_tokens")
            self._gauges = {**self._gauges, **dict.fromkeys(nothing, 0.0)}
        message = "The server is shutting down."
        if error is not None:
            ours = isinstance(error, LucidError)
            message = f"The engine ended: {error}" if ours else "The engine failed; see the server's log."
            if not loading:  # else the command line reports the error
                kind = "" if ours else f"{type(error).__name__}: "
                log.critical("The engine ended: %s%s", kind, error, exc_info=None if ours else error)
        for events, row in left:
            _send({events: [(row, unavailable(message, DOWN))]})
        if loading:
            self._when_loaded()


def _send(jobs: dict[JobEvents, list[tuple[int, Any]]]) -> None:
    """Pass events to the event loops of their jobs; each loop is woken once for all of its events."""
    for loop in {job.loop for job in jobs}:
        try:
            loop.call_soon_threadsafe(_deliver, [each for each in jobs.items() if each[0].loop is loop])
        except RuntimeError:  # the event loop is closed
            log.debug("An event loop closed while generations ran.")


def _deliver(jobs: list[tuple[JobEvents, list[tuple[int, Any]]]]) -> None:
    for job, events in jobs:
        job.queue.put_nowait(events)


def open_checked(directory: str) -> Artifact:
    """Open the artifact to serve, without reading its weights; raise a LucidError if it has no tokenizer."""
    artifact = open_artifact(directory)
    if not (artifact.directory / "tokenizer.json").is_file():
        raise LucidError(f"{directory} has no tokenizer.json, without which no text can be served; export it with one.")
    return artifact


def _prefix_tokens(session: Session[Any]) -> int:
    """Return the prefix store's default budget: the tokens that fit in 1 GiB, at most 65,536; 0 with TensorRT."""
    from lucid_deploy.generation.prefix_store import token_bytes

    return 0 if session.limits is not None else min(PREFIX_BYTES // token_bytes(session.layout), PREFIX_TOKENS)


def make_engine(options: EngineOptions) -> Engine:
    """Return an engine that loads the artifacts when it is started, and ends when their files change."""
    watches: list[ArtifactWatch] = []

    def open_batcher() -> Batcher:
        from lucid_deploy.batching import Batcher
        from lucid_deploy.generation.drafting import check_drafters, open_drafters
        from lucid_deploy.runtimes import open_session

        artifact = open_checked(options.directory)
        draft = check_drafters(options.speculate, artifact, options.draft)
        for each in [artifact] if draft is None else [artifact, draft]:
            watches.append(ArtifactWatch(each))  # before the weights are read, to notice changes during loading
            if options.check:
                check_hashes(each)
        drafters = open_drafters(options.speculate, artifact, options.draft, options.runtime)
        session = open_session(artifact, options.runtime)
        tokenizer, config = TextTokenizer(artifact.directory), session.config
        guides = None  # without llguidance, answers cannot be constrained
        if find_spec("llguidance") is not None:
            guides = GuideFactory(tokenizer, config.vocab_size, list(config.eos_token_ids))
        kept = _prefix_tokens(session) if options.prefix_tokens is None else options.prefix_tokens
        return Batcher(session, options.rows, options.prefill_budget, kept, guides, drafters)

    def check() -> None:
        for watch in watches:
            watch.check()

    return Engine(open_batcher, options.rows, options.max_queue, check, options.share_queue)

"""The engine: jobs in, text out. A thread owns the batcher; commands come in by a queue, events go to event loops."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.text_stream import AnswerPieces, AnswerText, TextPiece, TokenTexts

if TYPE_CHECKING:
    from lucid_deploy.batching import Batcher, Finished, Mark, Request, Token

log = logging.getLogger("lucid_deploy.serving")
CHECK_SECONDS = 1.0
MOST_CALLS = 4
ENDS = {"eos": "stop", "length": "length", "context": "length"}
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One HTTP request's generations: every prompt ``n`` times.

    Attributes:
        sampling: How tokens are chosen. Its seed is that of a prompt's first generation; the next ones count up.
        top_logprobs: Alternatives reported with each token's log-probability; None: no log-probabilities.
    """

    prompts: tuple[tuple[int, ...], ...]  # token ids of each prompt
    n: int = 1  # generations of each
    max_new_tokens: int = 16  # most tokens of each generation
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    stops: tuple[str, ...] = ()  # texts that end a generation and are not part of it
    stop_at_eos: bool = True  # whether an end-of-sequence token ends a generation
    top_logprobs: int | None = None
    tokens_as_ids: bool = False  # whether log-probabilities name tokens as ``token_id:N``, not by their text
    client: str = ""  # the digest of the API key; waiting clients take turns
    cache_owner: str = ""  # stored prefixes are reused among jobs of one owner only
    constraint: Constraint | None = None  # what each generation must be
    timed: bool = False  # whether :class:`RowTimes` are among the events
    shown_tokens: tuple[int, ...] = ()  # special tokens that are text all the same

    @property
    def rows(self) -> int:
        """Generations in all; number ``i`` continues prompt ``i // n``."""
        return len(self.prompts) * self.n


@dataclass(frozen=True, slots=True)
class RowEnd:
    """The end of generation ``row``."""

    row: int
    reason: str  # ``stop``, ``length``, or with a message ``error`` or ``invalid``
    message: str = ""  # what went wrong
    reused: int = 0  # prompt tokens that a stored prefix held


@dataclass(frozen=True, slots=True)
class RowTimes:
    """When generation ``row`` began its phases, in nanoseconds since 1970; the latest of these events counts.

    ``at`` has ``queue``, ``prefill``, ``decode``, ``text``, ``text_end`` and ``end`` as far as they are known, and
    ``text_spent``, the nanoseconds that turning tokens into text took in all.
    """

    row: int
    at: dict[str, int]
    reused: int = 0  # prompt tokens that a stored prefix held


@dataclass(frozen=True, slots=True)
class Refusal:
    """A job was refused: ``queue_full``, ``invalid``, ``down``, or ``unsupported`` here."""

    kind: str
    message: str = ""
    retry_after: int = 1  # seconds, with ``queue_full``
    param: str | None = None  # the request's field that is wrong, if one is


Event = TextPiece | RowEnd | RowTimes | Refusal


class Backend(Protocol):
    """Where jobs run: an engine in this process, or replicas elsewhere."""

    @property
    def state(self) -> str:
        """``loading``, ``ready``, ``stuck`` (a step takes longer than it may) or ``dead``."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[list[Event], None]:
        """Run a job; closing the generator cancels what still runs."""
        ...

    async def solving_layers(self) -> list[dict[str, Any]] | Refusal:
        """Return the layers that solve a system: ``layer`` and ``heads``, the number of key/value heads."""
        ...

    async def solve(self, ids: list[int], layer: int, head: int) -> dict[str, Any] | Refusal:
        """Return what a layer's head solves over a text, as ``/v1/lucid/solve`` gives it."""
        ...

    def gauges(self) -> dict[str, float]:
        """Return the engine's state by the names in :mod:`lucid_deploy.serving.metrics`, as far as it is known."""
        ...


class QueueFullError(Exception):
    """There is no room; ``retry_after`` is a guess in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The queue is full.")
        self.retry_after = retry_after


class EngineDownError(Exception):
    """The engine is not running: still loading, stopped, or ended by an error."""


@dataclass(frozen=True, slots=True)
class EngineFault:
    """The end of a generation that the batcher refused (``invalid``), or whose engine ended (``down``)."""

    kind: str
    message: str


if TYPE_CHECKING:
    EngineEvent = Token | Finished | Mark | EngineFault
_Command = tuple[str, "JobEvents | None", int, Any]  # name, whose, row, a request or what else it needs


class JobEvents:
    """The events of generations that were submitted together, numbered from 0. Belongs to one event loop."""

    def __init__(self, engine: Engine, rows: int, timed: bool = False) -> None:
        self.timed = timed  # whether all marks are among the events, or only those that say what was reused
        self.loop = asyncio.get_running_loop()
        self._engine = engine
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

    def deliver(self, events: list[tuple[int, EngineEvent]]) -> None:
        """Take events over; runs in the event loop."""
        from lucid_deploy.batching import Finished

        wanted = [(row, event) for row, event in events if row in self._open]
        self._open -= {row for row, event in wanted if isinstance(event, (Finished, EngineFault))}
        if wanted:
            self._events.put_nowait(wanted)


class Engine:
    """Runs a batcher in a thread of its own.

    Args:
        open_batcher: Loads the model and returns the batcher; called in the thread.
        check: Raises if the engine must not go on; called in the thread before steps, once in :data:`CHECK_SECONDS`.
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
        """Start loading; call ``when_loaded`` in the thread when the state is ``ready``, or ``dead`` with ``error``."""
        self._when_loaded = when_loaded
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """End the thread; what still runs gets an error. Return False if a step of the model runs for longer."""
        self._commands.put(("stop", None, 0, None))
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """Seconds since the model's step began; 0 between steps."""
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
        """Return the batcher's state after its last step."""
        return dict(self._gauges)

    def submit(self, requests: list[Request], timed: bool = False) -> JobEvents:
        """Queue generations, all or none. Call it in an event loop."""
        with self._lock:
            self._check_ready()
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
            self._check_ready()
            if self._calls >= MOST_CALLS:
                raise QueueFullError(1)
            self._calls += 1
            self._commands.put(("call", None, 0, (function, future)))
        future.add_done_callback(lambda _: self._call_done())
        return future

    def _check_ready(self) -> None:
        if self.state != "ready":
            raise EngineDownError("The model is still loading." if self.state == "loading" else "The engine ended.")

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
        except BaseException as error:  # noqa: BLE001 (whatever ends the thread, its clients must get an error)
            self._die(error)
        else:
            self._die(None)

    def _check_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._check()
            self._checked = now

    def _take_commands(self, batcher: Batcher) -> bool:
        """Run the commands that came since the last step; wait for one if nothing runs."""
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
            except RuntimeError:  # the event loop is closed
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
    """Call a function; store its exception in the caller's future, so that the engine goes on."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(batcher))
    except Exception as error:  # noqa: BLE001 (it is raised where the result is waited for)
        future.set_exception(error)


def _deliver_all(streams: dict[JobEvents, list[tuple[int, Any]]]) -> None:
    for stream, events in streams.items():
        stream.deliver(events)


class LocalBackend:
    """The engine of this process; a step of the model that takes longer than ``most_step_seconds`` makes it stuck."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, most_step_seconds: float = math.inf) -> None:
        self.engine = engine
        self._most_step_seconds = most_step_seconds
        self._tokenizer, self._token_texts = tokenizer, TokenTexts(tokenizer)
        self._drafted = 0  # tokens of answers

    @property
    def state(self) -> str:
        stuck = self.engine.state == "ready" and self.engine.step_seconds > self._most_step_seconds
        return "stuck" if stuck else self.engine.state

    def gauges(self) -> dict[str, float]:
        return {**self.engine.gauges(), "draft_tokens_accepted": float(self._drafted)}

    async def solving_layers(self) -> list[dict[str, Any]] | Refusal:
        from lucid_deploy.runtimes.solve_weights import solving_layers

        found = await self._called(lambda batcher: solving_layers(batcher.session))
        return found if isinstance(found, Refusal) else [{"layer": layer, "heads": n} for layer, n in found.items()]

    async def solve(self, ids: list[int], layer: int, head: int) -> dict[str, Any] | Refusal:
        from lucid_deploy.runtimes.solve_weights import PlaceError, SolveWeights, solve_weights

        def weights(batcher: Batcher) -> SolveWeights | Refusal:
            try:
                return solve_weights(batcher.session, ids, layer, head)
            except PlaceError as error:
                return Refusal("invalid", str(error), param=error.argument)

        found = await self._called(weights)
        if isinstance(found, Refusal):
            return found
        return {
            "object": "lucid.solve",
            "layer": layer,
            "head": head,
            "ids": ids,
            "tokens": [self._token_texts(token)[0] for token in ids],
            "subtracted": [_rounded(row[:i]) for i, row in enumerate(found.subtracted)],
            "diagonal": _rounded(found.diagonal),
            "coefficients": [_rounded(row[: i + 1]) for i, row in enumerate(found.coefficients)],
        }

    async def _called(self, function: Callable[[Batcher], T]) -> T | Refusal:
        try:
            return await asyncio.wrap_future(self.engine.call(function))
        except (QueueFullError, EngineDownError, LucidError) as error:
            return _refusal(error)

    async def generate(self, job: Job) -> AsyncGenerator[list[Event], None]:
        """Run a job; closing the generator cancels what still runs."""
        rows = {row: RowText(row, job, self._tokenizer, self._token_texts) for row in range(job.rows)}
        try:
            stream = self.engine.submit(requests_of(job), job.timed)
        except (QueueFullError, EngineDownError) as error:
            yield [_refusal(error)]
            return
        try:
            if job.timed:
                yield [row.times() for row in rows.values()]
            while rows:
                out: list[Event] = []
                for number, event in await stream.next():
                    if number not in rows:  # a stop string ended it
                        continue
                    self._drafted += getattr(event, "drafted", False)
                    try:
                        events, done = rows[number].take(event)
                    except LucidError as error:  # of the tokenizer
                        events, done = [RowEnd(number, "error", str(error))], True
                    out += events
                    if done:
                        del rows[number]
                        stream.cancel(number)
                if out:
                    yield out
        finally:
            stream.close()


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, QueueFullError):
        return Refusal("queue_full", retry_after=error.retry_after)
    return Refusal("down" if isinstance(error, EngineDownError) else "invalid", str(error))


def _rounded(row: Any) -> list[float]:
    """Return numbers with six digits, which is more than the artifact's own."""
    return [float(f"{value:.6g}") for value in row]


def requests_of(job: Job) -> list[Request]:
    """Return a request for each generation of a job."""
    from lucid_deploy.batching import Request

    out = []
    for row in range(job.rows):
        seed = None if job.sampling.seed is None else job.sampling.seed + row % job.n
        request = Request(list(job.prompts[row // job.n]), job.max_new_tokens, replace(job.sampling, seed=seed))
        request = replace(request, stop_at_eos=job.stop_at_eos, top_logprobs=job.top_logprobs, client=job.client)
        out.append(replace(request, cache_owner=job.cache_owner, constraint=job.constraint))
    return out


class RowText:
    """The events of one generation for its client: tokens as text, its end, and if wanted the times of its phases."""

    def __init__(self, row: int, job: Job, tokenizer: TextTokenizer, token_texts: TokenTexts) -> None:
        text = AnswerText(tokenizer, job.stops, job.shown_tokens)
        self._pieces = AnswerPieces(row, text, token_texts, job.top_logprobs is not None, job.tokens_as_ids)
        self._row, self._timed, self._reused = row, job.timed, 0
        self._at = {"queue": time.time_ns()}

    def times(self) -> RowTimes:
        """Return when its phases began."""
        return RowTimes(self._row, dict(self._at), self._reused)

    def take(self, event: Mark | Token | Finished | EngineFault) -> tuple[list[Event], bool]:
        """Return what an event of the engine means to the client, and whether the generation is over."""
        from lucid_deploy.batching import Mark

        if isinstance(event, Mark):
            self._reused += event.reused
            self._at[event.phase] = event.at
            return ([self.times()] if self._timed else []), False
        began = time.time_ns()
        events, done = self._take(event)
        if self._timed:
            self._at.setdefault("text", began)
            self._at["text_end"] = now = time.time_ns()
            self._at["text_spent"] = self._at.get("text_spent", 0) + now - began
            if done:
                self._at["end"] = now
                events = [self.times(), *events]
        return events, done

    def _take(self, event: Token | Finished | EngineFault) -> tuple[list[Event], bool]:
        from lucid_deploy.batching import Token

        if isinstance(event, Token):
            piece = self._pieces.push(event.token, event.logprob, event.top)
            return ([piece, self._end("stop")], True) if self._pieces.stopped else ([piece], False)
        if isinstance(event, EngineFault):
            return [RowEnd(self._row, "invalid" if event.kind == "invalid" else "error", event.message)], True
        if event.reason == "refused":
            return [RowEnd(self._row, "invalid", event.error or "")], True
        if event.reason not in ENDS:
            return [RowEnd(self._row, "error", event.error or f"The generation was {event.reason}.")], True
        piece = self._pieces.finish()
        end = self._end("stop" if self._pieces.stopped else ENDS[event.reason])
        return ([piece, end] if piece.text or piece.logprobs else [end]), True

    def _end(self, reason: str) -> RowEnd:
        return RowEnd(self._row, reason, reused=self._reused)

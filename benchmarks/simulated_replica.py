"""One replica as the simulation has it: the batcher's order of work and the store of prefixes, with measured times.

The rules are those of :class:`lucid_deploy.batching.Batcher` and
:class:`lucid_deploy.generation.prefix_store.PrefixStore`; tests run both and compare.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulated_trace import Session


@dataclass(frozen=True)
class StepTimes:
    """How long the model's steps take, in seconds.

    Attributes:
        linear, quadratic: A prompt of n tokens takes linear · n + quadratic · n² alone and at once.
        rows: Numbers of rows that were measured, from 1 up.
        decode: A decode step's seconds at those numbers; between them on a line, beyond the last in proportion.
    """

    linear: float
    quadratic: float
    rows: tuple[int, ...]
    decode: tuple[float, ...]

    def prompt(self, past: int, new: int) -> float:
        """Return the time of ``new`` tokens behind ``past`` ones: the difference of two whole prompts."""
        return self.linear * new + self.quadratic * new * (2 * past + new)

    def step(self, rows: int) -> float:
        """Return the time of a decode step."""
        if rows >= self.rows[-1]:
            return self.decode[-1] * rows / self.rows[-1]
        high = next(i for i, measured in enumerate(self.rows) if measured > rows)
        share = (rows - self.rows[high - 1]) / (self.rows[high] - self.rows[high - 1])
        return self.decode[high - 1] + share * (self.decode[high] - self.decode[high - 1])

    @classmethod
    def fit(cls, prompts: Sequence[tuple[int, float]], decode: Sequence[tuple[int, float]]) -> StepTimes:
        """Return the times by measurements: the least squares of relative errors for prompts, decode steps as they are.

        Args:
            prompts: Tokens and seconds.
            decode: Rows and seconds, from one row up.
        """
        # seconds / tokens = linear + quadratic · tokens, weighted by 1 / (seconds / tokens)
        sums = [0.0] * 5
        for tokens, seconds in prompts:
            weight, value = (tokens / seconds) ** 2, seconds / tokens
            for i, term in enumerate((1.0, tokens, tokens * tokens, value, value * tokens)):
                sums[i] += weight * term
        one, first, second, plain, slope = sums
        scale = one * second - first * first
        rows, seconds_of = zip(*sorted(decode), strict=True)
        linear, quadratic = (plain * second - first * slope) / scale, (one * slope - first * plain) / scale
        return cls(linear, quadratic, tuple(rows), tuple(seconds_of))


@dataclass(slots=True)
class Ask:
    """A request.

    Attributes:
        session, turn: What is asked.
        prompt, answer: Tokens.
        asked: When, in seconds.
        first: When its first token came.
        ended: When its last one did.
        reused: Prompt tokens that were not run.
        done: Prompt tokens in its cache.
    """

    session: Session
    turn: int
    prompt: int
    answer: int
    asked: float
    first: float = math.nan
    ended: float = math.nan
    reused: int = 0
    done: int = 0


class PrefixModel:
    """How many tokens of a prompt a store of prefixes would hold.

    Texts of one session begin alike; those of different sessions of one application share its beginning and nothing
    else.

    Args:
        budget: Most tokens to keep, over all entries.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[int, tuple[int, int]] = OrderedDict()  # session: tokens, application
        self._by_application: dict[int, OrderedDict[int, None]] = {}
        self._tokens = 0

    def add(self, session: Session, tokens: int) -> None:
        """Keep the first tokens of a session's text."""
        if not 0 < tokens <= self._budget:
            return
        kept = self._entries.get(session.number)
        if kept is not None and kept[0] >= tokens:
            self._use(session.number)
            return
        if kept is not None:
            self._drop(session.number)
        while self._entries and self._tokens + tokens > self._budget:
            self._drop(next(iter(self._entries)))
        self._entries[session.number] = (tokens, session.application)
        self._by_application.setdefault(session.application, OrderedDict())[session.number] = None
        self._tokens += tokens

    def find(self, session: Session, most: int) -> int:
        """Return how many of the first ``most`` tokens of a session's text are kept."""
        kept = self._entries.get(session.number)
        if kept is not None and most:
            self._use(session.number)
            return min(kept[0], most)
        others = self._by_application.get(session.application)
        if not others or not min(session.system, most):
            return 0
        self._use(next(iter(others)))
        return min(session.system, most)

    def _use(self, number: int) -> None:
        self._entries.move_to_end(number)
        self._by_application[self._entries[number][1]].move_to_end(number)

    def _drop(self, number: int) -> None:
        tokens, application = self._entries.pop(number)
        del self._by_application[application][number]
        self._tokens -= tokens


@dataclass(slots=True)
class Stretch:
    """Steps of equal length that a replica has begun.

    Attributes:
        begun: When.
        each: Seconds of each.
        count: How many.
        firsts: Requests whose first token is among what the first step gives.
    """

    begun: float
    each: float
    count: int
    firsts: list[Ask] = field(default_factory=list)

    @property
    def end(self) -> float:
        """When the last of them ends."""
        return self.begun + self.each * self.count


class Replica:
    """A batcher: a chunk of prompts, then a token of every running row, and so on.

    Attributes:
        stretch: The steps that run; None: idle.
        busy: Seconds that it has run.

    Args:
        times: Of its steps.
        rows: Requests that run at once.
        max_queue: Further ones that may wait.
        chunk: Prompt tokens a step.
        prefix_tokens: Budget of its store.
    """

    def __init__(self, times: StepTimes, rows: int, max_queue: int, chunk: int, prefix_tokens: int) -> None:
        self.stretch: Stretch | None = None
        self.busy = 0.0
        self._times = times
        self._decode = [0.0] + [times.step(count) for count in range(1, rows + 1)]
        self._rows, self._most, self._chunk = rows, rows + max_queue, chunk
        self._store = PrefixModel(prefix_tokens)
        self._waiting: deque[Ask] = deque()
        self._filling: Ask | None = None
        self._running: list[tuple[int, int, Ask]] = []  # heap of the step after which each ends
        self._steps = self._order = 0

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._waiting) + self._active

    @property
    def _active(self) -> int:
        return len(self._running) + (self._filling is not None)

    def take(self, ask: Ask) -> bool:
        """Queue a request; return whether there was room. Steps that run go on, and :meth:`cut` may shorten them."""
        if self.load >= self._most:
            return False
        self._waiting.append(ask)
        return True

    def cut(self, now: float) -> bool:
        """Let the steps end with the present one if a request waits that could have a row; return whether it is so."""
        stretch = self.stretch
        if stretch is None or stretch.count == 1 or not self._waiting or self._active >= self._rows:
            return False
        count = max(1, math.ceil((now - stretch.begun) / stretch.each))
        if count >= stretch.count:
            return False
        stretch.count = count
        return True

    def begin(self, now: float) -> None:
        """Begin the next steps, if there is anything to do."""
        seconds, ended_prompts = self._prompts()
        rows = len(self._running)
        if not rows and not seconds and not ended_prompts:
            self.stretch = None
            return
        count = 1 if seconds or ended_prompts else self._running[0][0] - self._steps
        self.stretch = Stretch(now, seconds + self._decode[rows], count, ended_prompts)

    def end(self) -> list[Ask]:
        """End the running steps; return the requests that are answered."""
        stretch = self.stretch
        assert stretch is not None
        now = stretch.end
        self.busy += now - stretch.begun
        self._steps += stretch.count
        for ask in stretch.firsts:
            ask.first = now
        done = [ask for ask in stretch.firsts if ask.answer == 1]
        while self._running and self._running[0][0] <= self._steps:
            ask = heapq.heappop(self._running)[2]
            self._store.add(ask.session, ask.prompt + ask.answer - 1)  # the last token was never run
            done.append(ask)
        for ask in done:
            ask.ended = now
        return done

    def _prompts(self) -> tuple[float, list[Ask]]:
        """Run a chunk of prompts; return its seconds and the requests whose prompt has run."""
        budget, seconds = self._chunk, 0.0
        ended: list[Ask] = []
        while budget:
            if self._filling is None and not self._start():
                break
            ask = self._filling
            assert ask is not None
            part = min(budget, ask.prompt - ask.done)
            seconds += self._times.prompt(ask.done, part)
            ask.done += part
            budget -= part
            if ask.done == ask.prompt:
                self._store.add(ask.session, ask.prompt)
                ended.append(ask)
                self._filling = None
                if ask.answer > 1:
                    self._order += 1
                    heapq.heappush(self._running, (self._steps + ask.answer - 1, self._order, ask))
        return seconds, ended

    def _start(self) -> bool:
        if not self._waiting or self._active >= self._rows:
            return False
        ask = self._filling = self._waiting.popleft()
        ask.reused = ask.done = self._store.find(ask.session, ask.prompt - 1)
        return True

"""Replicas, what sends requests to them, and a day of conversations that comes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from simulated_replica import Ask, Replica, StepTimes
from simulated_trace import DAY, Session

from lucid_deploy.serving.prefix_routing import BLOCK, MOST_BLOCKS, PrefixTable, allowed_imbalance, preferred

BLOCKS_PER_TEXT = 1 << 16


@dataclass(frozen=True)
class FleetOptions:
    """The replicas.

    Attributes:
        replicas: How many.
        rows: Requests that each runs at once.
        max_queue: Further ones that each takes.
        chunk: Prompt tokens a step.
        prefix_tokens: Budget of each one's store of prefixes.
        imbalance: Requests that the replica with a prefix may have beyond the least busy one, as `serve --engine ray`
            has it.
        seed: Of the choices that routing makes at random.
    """

    replicas: int
    rows: int = 8
    max_queue: int = 64
    chunk: int = 512
    prefix_tokens: int = 32_768
    imbalance: int = allowed_imbalance(rows)
    seed: int = 0


Route = Callable[[Ask, Sequence[Replica]], int]


def round_robin(options: FleetOptions) -> Route:
    """Return the rule: one replica after another."""
    turn = itertools.cycle(range(options.replicas))
    return lambda ask, replicas: next(turn)


def least_loaded(options: FleetOptions) -> Route:
    """Return the rule: a replica with the fewest requests, at random among several."""
    rng = np.random.default_rng(options.seed)

    def route(ask: Ask, replicas: Sequence[Replica]) -> int:
        loads = [replica.load for replica in replicas]
        least = min(loads)
        idlest = [i for i, load in enumerate(loads) if load == least]
        return idlest[int(rng.integers(len(idlest)))]

    return route


def by_prefix(options: FleetOptions) -> Route:
    """Return the rule of ``serve --engine ray``: the replica with the prefix, or the idler of two at random.

    There are two front doors, or one for one replica, and each remembers what went through it.
    """
    rng = np.random.default_rng(options.seed)
    names = [str(i) for i in range(options.replicas)]
    doors: list[PrefixTable[int]] = [PrefixTable() for _ in range(min(2, options.replicas))]

    def route(ask: Ask, replicas: Sequence[Replica]) -> int:
        table, blocks = doors[int(rng.integers(len(doors)))], block_numbers(ask)
        loads = {name: replica.load for name, replica in zip(names, replicas, strict=True)}
        found = preferred(table, blocks, loads, options.imbalance)
        if found is None:
            two = rng.choice(len(replicas), min(2, len(replicas)), replace=False)
            found = names[int(min(two, key=lambda i: replicas[i].load))]
        table.note(blocks, found)
        return int(found)

    return route


POLICIES: dict[str, Callable[[FleetOptions], Route]] = {
    "prefix": by_prefix,
    "round robin": round_robin,
    "least loaded": least_loaded,
}


def block_numbers(ask: Ask) -> list[int]:
    """Return names of a prompt's whole blocks that are equal where those by tokens would be (see `block_names`)."""
    session = ask.session
    count = min(ask.prompt // BLOCK, MOST_BLOCKS)
    shared = min(session.system // BLOCK, count)
    common, own = 2 * session.application * BLOCKS_PER_TEXT, (2 * session.number + 1) * BLOCKS_PER_TEXT
    return [*range(common, common + shared), *range(own + shared, own + count)]


@dataclass
class Outcome:
    """What a fleet did in a day.

    Attributes:
        answered, refused: Requests.
        busy: Seconds that all replicas ran.
        last: When the last answer ended, in seconds.
    """

    answered: list[Ask]
    refused: list[Ask]
    busy: float
    last: float


def simulate(sessions: Sequence[Session], times: StepTimes, options: FleetOptions, policy: str) -> Outcome:
    """Run a day's conversations through a fleet."""
    return _Day(sessions, times, options, policy).run()


class _Day:
    def __init__(self, sessions: Sequence[Session], times: StepTimes, options: FleetOptions, policy: str) -> None:
        self._replicas = [
            Replica(times, options.rows, options.max_queue, options.chunk, options.prefix_tokens)
            for _ in range(options.replicas)
        ]
        self._versions = [0] * options.replicas
        self._route = POLICIES[policy](options)
        self._order = itertools.count()
        # (time, order, session and turn that asks) or (time, order, replica and version whose steps end)
        self._events: list[tuple[float, int, Session | None, int, int]] = [
            (session.start, next(self._order), session, 0, 0) for session in sessions
        ]
        heapq.heapify(self._events)
        self._out = Outcome([], [], 0.0, 0.0)

    def run(self) -> Outcome:
        while self._events:
            now, _, session, first, second = heapq.heappop(self._events)
            if session is not None:
                self._ask(now, session, first)
            elif self._versions[first] == second:
                self._steps_end(now, first)
        self._out.busy = sum(replica.busy for replica in self._replicas)
        return self._out

    def _ask(self, now: float, session: Session, turn: int) -> None:
        spoken = session.turns[turn]
        ask = Ask(session, turn, spoken.prompt, spoken.answer, now)
        number = self._route(ask, self._replicas)
        replica = self._replicas[number]
        if not replica.take(ask):
            self._out.refused.append(ask)
        elif replica.stretch is None:
            replica.begin(now)
            self._expect(number)
        elif replica.cut(now):
            self._expect(number)

    def _steps_end(self, now: float, number: int) -> None:
        replica = self._replicas[number]
        for ask in replica.end():
            self._out.answered.append(ask)
            self._out.last = now
            if ask.turn + 1 < len(ask.session.turns):
                then = now + ask.session.turns[ask.turn + 1].think
                heapq.heappush(self._events, (then, next(self._order), ask.session, ask.turn + 1, 0))
        replica.begin(now)
        self._expect(number)

    def _expect(self, number: int) -> None:
        """Note when a replica's steps end; what was noted before counts no more."""
        self._versions[number] += 1
        stretch = self._replicas[number].stretch
        if stretch is not None:
            event = (stretch.end, next(self._order), None, number, self._versions[number])
            heapq.heappush(self._events, event)


def summary(outcome: Outcome, replicas: int) -> dict[str, Any]:
    """Return the figures of a day."""
    answered = outcome.answered
    hours = replicas * DAY / 3600
    first = np.array([ask.first - ask.asked for ask in answered])
    whole = np.array([ask.ended - ask.asked for ask in answered])
    return {
        "asked": len(answered) + len(outcome.refused),
        "refused": len(outcome.refused),
        "hit_rate": sum(ask.reused for ask in answered) / sum(ask.prompt for ask in answered),
        "first_token_seconds": {f"p{q}": float(np.percentile(first, q)) for q in (50, 99)},
        "answer_seconds": {f"p{q}": float(np.percentile(whole, q)) for q in (50, 99)},
        "busy_share": outcome.busy / replicas / max(DAY, outcome.last),
        "busy_hours": outcome.busy / 3600,
        "replica_hours": hours,
        "replica_hours_per_1000_answers": 1000 * hours / len(answered),
    }

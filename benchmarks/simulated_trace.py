"""A day of conversations, made up from a seed: who comes when, what a conversation begins with, and how it grows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class TraceOptions:
    """What a day is like. Lengths are in tokens.

    Attributes:
        sessions: Conversations expected in the day.
        seed: Gives the same day again.
        swing: Share by which the busiest moment is above the mean and the quietest one below it.
        busiest: Hour of the busiest moment.
        applications: Different beginnings (instructions, descriptions of tools) that conversations share.
        skew: Exponent of how unequal their shares are: the k-th most frequent one has weight 1 / k ** skew.
        system: Least and most tokens of such a beginning.
        turns: Mean number of a conversation's turns (geometric).
        question: Median tokens of what a user adds in a turn; lognormal.
        answer: Median tokens of an answer; lognormal.
        spread: Standard deviation of the logarithm of both.
        think: Mean seconds between an answer and the next question (exponential).
        context: Most tokens of a conversation; it ends before the turn that would pass it.
    """

    sessions: int = 40_000
    seed: int = 0
    swing: float = 0.7
    busiest: float = 14.0
    applications: int = 40
    skew: float = 1.0
    system: tuple[int, int] = (256, 768)
    turns: float = 4.0
    question: float = 50.0
    answer: float = 150.0
    spread: float = 0.6
    think: float = 40.0
    context: int = 2048


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        prompt: Tokens of the prompt: the beginning, all turns before and the new question.
        answer: Tokens of the answer.
        think: Seconds from the answer before to this question; 0 for the first one.
    """

    prompt: int
    answer: int
    think: float


@dataclass(frozen=True)
class Session:
    """A conversation.

    Attributes:
        number: From 0, by arrival.
        application: Which beginning it shares.
        system: Tokens of that beginning.
        start: Seconds from midnight to its first question.
        turns: One after another: a question waits for the answer before.
    """

    number: int
    application: int
    system: int
    start: float
    turns: tuple[Turn, ...]


def make_trace(options: TraceOptions) -> list[Session]:
    """Return a day's conversations in order of arrival."""
    rng = np.random.default_rng(options.seed)
    starts = _arrivals(options, rng)
    weights = 1.0 / np.arange(1, options.applications + 1) ** options.skew
    applications = rng.choice(options.applications, len(starts), p=weights / weights.sum())
    systems = rng.integers(options.system[0], options.system[1] + 1, options.applications)
    counts = rng.geometric(1.0 / options.turns, len(starts))
    out = []
    for i, application in enumerate(map(int, applications)):
        system = int(systems[application])
        turns = _turns(options, rng, system, int(counts[i]))
        out.append(Session(i, application, system, float(starts[i]), turns))
    return out


def rate(options: TraceOptions, seconds: float) -> float:
    """Return conversations that begin per second, at a time of the day."""
    phase = 2 * math.pi * (seconds / DAY - options.busiest / 24)
    return options.sessions / DAY * (1 + options.swing * math.cos(phase))


def _arrivals(options: TraceOptions, rng: np.random.Generator) -> np.ndarray:
    """Return the arrivals of a Poisson process whose rate follows the day, by thinning (Lewis and Shedler, 1979)."""
    most = options.sessions / DAY * (1 + options.swing)
    candidates = np.sort(rng.uniform(0, DAY, rng.poisson(most * DAY)))
    wanted = np.array([rate(options, moment) for moment in candidates])
    return candidates[rng.uniform(0, most, len(candidates)) < wanted]


def _turns(options: TraceOptions, rng: np.random.Generator, system: int, count: int) -> tuple[Turn, ...]:
    out: list[Turn] = []
    length = system
    for i in range(count):
        question, answer = (
            max(1, round(float(rng.lognormal(math.log(median), options.spread))))
            for median in (options.question, options.answer)
        )
        think = float(rng.exponential(options.think)) if i else 0.0
        if length + question + answer > options.context and out:
            break
        prompt = min(length + question, options.context - 1)
        answer = min(answer, options.context - prompt)
        out.append(Turn(prompt, answer, think))
        length = prompt + answer
    return tuple(out)

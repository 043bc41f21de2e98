"""Drafts: tokens that may come next, guessed cheaply, for one step of the model to verify all at once.

A drafter proposes one sequence and no distribution. Each of its tokens is accepted when the token that is chosen from
the model's own logits is the same. So the answer is that of plain decoding, sampled or not; a wrong guess costs time.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.runtimes.several import MOST

MOST_DRAFTS = MOST - 1  # one place of the step is for the token that is known
LONGEST = 4  # tokens of an n-gram
_FIRST_LENGTHS = {1: 2, 2: 4, 3: 6, 4: 8}  # drafted at first, by the length of what was found
_MOST_PAUSE = 63  # steps
_FIRST_ROOM = 1024  # tokens


class Drafter(ABC):
    """Guesses how one text goes on. It is told every token of the text, in order.

    Attributes:
        chunk: Most tokens that one proposal may run through a model of its own; None: any number.
        ends: Tokens that end the answer: a proposal stops before the first of them, behind which nothing is read.
        reads_at_once: Whether it can propose what comes behind a prompt without delay, so that this runs with the
            prompt: it has no model that must read the prompt first.
    """

    chunk: int | None = None
    ends: Container[int] = ()
    reads_at_once: bool = False

    @abstractmethod
    def add(self, tokens: Sequence[int]) -> None:
        """Go on with the text by so many tokens."""

    @abstractmethod
    def propose(self, most: int) -> list[int]:
        """Return the tokens that may come next, at most so many; none: a plain step is better."""

    @abstractmethod
    def learn(self, proposed: int, accepted: int) -> None:
        """Hear how many tokens of the last proposal were accepted."""


MakeDrafter: TypeAlias = Callable[[], Drafter]


@dataclass
class DraftLength:
    """How many tokens to draft, adapted to what is accepted, and when to leave it.

    A proposal that is accepted whole doubles the length, another sets it to one more than was accepted. After a
    proposal of which nothing is accepted, 1, 3, 7, … 63 chances are passed over, so that a text without repetition
    costs little more than plain decoding.
    """

    length: int
    failures: int = 0
    pause: int = 0

    def now(self) -> int:
        """Return how many tokens to draft; 0 within a pause."""
        if self.pause:
            self.pause -= 1
            return 0
        return self.length

    def learn(self, proposed: int, accepted: int) -> None:
        """Adapt."""
        if accepted:
            self.failures = 0
            self.length = min(2 * self.length, MOST_DRAFTS) if accepted == proposed else accepted + 1
            return
        self.failures += 1
        self.length = max(self.length // 2, 1)
        self.pause = min(2**self.failures - 1, _MOST_PAUSE)


class LookupDrafter(Drafter):
    """Takes what came after the last place in prompt and answer that reads like the end of the text.

    The longest n-gram of 4 to 1 tokens that was there before counts. Each of the four lengths adapts by itself: what a
    single token is followed by says little in prose, and much in a list that is copied.
    """

    reads_at_once = True

    def __init__(self) -> None:
        self._room, self._count = np.zeros(_FIRST_ROOM, np.int32), 0
        self._lengths = {n: DraftLength(length) for n, length in _FIRST_LENGTHS.items()}
        self._used = 0  # n of the last proposal

    def add(self, tokens: Sequence[int]) -> None:
        """See :meth:`Drafter.add`."""
        end = self._count + len(tokens)
        if end > len(self._room):
            self._room = np.concatenate([self._text, np.zeros(max(len(self._room), end), np.int32)])
        self._room[self._count : end] = tokens
        self._count = end

    def propose(self, most: int) -> list[int]:
        """See :meth:`Drafter.propose`."""
        # One pass finds the places of the last token. An index of n-grams took 7 ms to fill with 8192 tokens, and 100
        # times their memory.
        text, found = self._text, 0
        places = longer = np.flatnonzero(text[:-1] == text[-1:]) + 1  # where the text goes on behind what is found
        while len(longer) and found < LONGEST:
            places, found = longer, found + 1
            longer = places[places > found]
            longer = longer[text[longer - found - 1] == text[len(text) - found - 1]]
        if not found:
            return []
        self._used = found
        return self._copy(int(places[-1]), min(self._lengths[found].now(), most))

    def learn(self, proposed: int, accepted: int) -> None:
        """See :meth:`Drafter.learn`."""
        self._lengths[self._used].learn(proposed, accepted)

    @property
    def _text(self) -> NDArray[np.int32]:
        return self._room[: self._count]

    def _copy(self, start: int, count: int) -> list[int]:
        """Return what stands from a place on; behind the end of the text, what is copied goes on itself."""
        period = self._count - start
        copied = (int(self._text[start + i % period]) for i in range(count))
        return list(itertools.takewhile(lambda token: token not in self.ends, copied))

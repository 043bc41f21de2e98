"""The task of the bundled checkpoint: recall one entry of a list.

A prompt is a list of who has what, and one unfinished sentence; the answer finishes it with two words, and ends::

    fox has red lamp, owl has blue cup, bear has green key. owl has   ->   blue cup

Animals are distinct within a list. Adjectives and things repeat freely, so neither word of the answer follows from the
other: each needs its own lookup of the animal.

**Held out.** One in eight of all (animal, adjective, thing) entries, chosen by a hash of the words, never occurs in
training, neither as the entry that is asked for nor elsewhere in a list. A held-out prompt consists of such entries
only.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words(
    "ant badger bat bear beaver bee bison boar camel cat cow crab crane crow deer dog dolphin donkey dove duck "
    "eagle eel elk falcon ferret finch fox frog goat goose gull hare hawk hen heron horse hyena jackal koala lamb "
    "lion lizard llama lynx mole moose mouse otter owl panda parrot pig pony puma rabbit raven seal shark sheep "
    "snail swan tiger toad wolf"
)
ADJECTIVES = _words(
    "black blue brown cheap clean cold dark dirty dry empty flat full green grey heavy huge light long narrow new "
    "old pink purple red round short soft square white yellow"
)
THINGS = _words(
    "ball basket bell book bottle bowl box brush bucket candle chair clock coat cup drum flag hat key knife lamp "
    "map mirror pot ring rope spoon table tent"
)
VERB, COMMA, STOP = "has", ",", "."

MIN_PAIRS, MAX_PAIRS = 2, 28  # entries in a list; 28 make a prompt of 143 tokens with <bos>
_HELD_OUT_SHARE = 8  # one of this many entries is held out
_SALT = "held out"

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One prompt and its right answer."""

    prompt: str  # the list and the unfinished sentence
    answer: str  # the two words that finish it; the end-of-sequence token comes next
    pairs: int  # entries in the list


@dataclass(frozen=True)
class RecallLists:
    """A batch of prompts as indices of words: what each animal has, and which animals are asked for."""

    animals: Indices  # into ANIMALS, (batch, pairs); distinct within a row
    adjectives: Indices  # into ADJECTIVES, (batch, pairs)
    things: Indices  # into THINGS, (batch, pairs)
    # Positions in the list, (batch, questions). They may repeat: were they distinct, "one not asked for yet"
    # would be a good guess, and training would settle for it.
    asked: Indices


def vocabulary() -> tuple[str, ...]:
    """Return every word and punctuation mark that prompts and answers are made of, in a fixed order."""
    return (COMMA, STOP, VERB, *ANIMALS, *ADJECTIVES, *THINGS)


def is_held_out(animal: str, adjective: str, thing: str) -> bool:
    """Return whether an entry is kept out of training. This depends on the words alone, not on a random generator."""
    digest = hashlib.sha256(f"{_SALT} {animal} {adjective} {thing}".encode()).digest()
    return digest[0] % _HELD_OUT_SHARE == 0


def sample_lists(
    rng: np.random.Generator, pairs: int, questions: int = 1, batch: int = 1, *, held_out: bool = False
) -> RecallLists:
    """Draw ``batch`` lists of ``pairs`` entries, with ``questions`` for each; ValueError if a number is impossible.

    Every entry is held out if ``held_out`` is set, and none otherwise.
    """
    if questions < 1 or not 1 <= pairs <= len(ANIMALS):
        raise ValueError(f"need 1 <= pairs <= {len(ANIMALS)} and questions >= 1, not {pairs} and {questions}")
    animals = rng.random((batch, len(ANIMALS))).argsort(axis=1)[:, :pairs]
    asked = rng.integers(pairs, size=(batch, questions))
    adjectives, things = np.zeros_like(animals), np.zeros_like(animals)
    wrong = np.ones(animals.shape, dtype=bool)
    while wrong.any():  # redraw entries that are held out and must not be, or the reverse
        adjectives[wrong] = rng.integers(len(ADJECTIVES), size=wrong.sum())
        things[wrong] = rng.integers(len(THINGS), size=wrong.sum())
        wrong = _held_out_table()[animals, adjectives, things] != held_out
    return RecallLists(animals, adjectives, things, asked)


def sample_prompt(rng: np.random.Generator, pairs: int, *, held_out: bool = False) -> Example:
    """Draw one prompt with ``pairs`` entries; arguments and errors as :func:`sample_lists`."""
    lists = sample_lists(rng, pairs, held_out=held_out)
    rows = zip(lists.animals[0], lists.adjectives[0], lists.things[0], strict=True)
    entries = [(ANIMALS[i], ADJECTIVES[j], THINGS[k]) for i, j, k in rows]
    animal, adjective, thing = entries[lists.asked[0, 0]]
    listed = f"{COMMA} ".join(f"{who} {VERB} {how} {what}" for who, how, what in entries)
    return Example(f"{listed}{STOP} {animal} {VERB}", f"{adjective} {thing}", pairs)


def held_out(count: int, seed: int = 2026, max_pairs: int = MAX_PAIRS) -> list[Example]:
    """Return prompts of held-out entries, going through the lengths from ``MIN_PAIRS`` to ``max_pairs`` in turn."""
    rng = np.random.default_rng(seed)
    lengths = range(MIN_PAIRS, max_pairs + 1)
    return [sample_prompt(rng, lengths[i % len(lengths)], held_out=True) for i in range(count)]


@functools.cache
def _held_out_table() -> NDArray[np.bool_]:
    """Return :func:`is_held_out` of every entry as an array ``(animals, adjectives, things)``."""
    return np.array([[[is_held_out(i, j, k) for k in THINGS] for j in ADJECTIVES] for i in ANIMALS])

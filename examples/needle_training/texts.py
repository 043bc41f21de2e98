"""The five tasks, after RULER's: a text of sentences of six words, and questions about it.

| task | RULER's | own sentences | the others |
|---|---|---|---|
| single | niah_single_1 | 1 needle | filler |
| multi-key | niah_multikey_2 | 8 needles | needles of other keys |
| multi-value | niah_multivalue | 2 keys with 4 values each | one in two is a needle of another key, else filler |
| multi-query | niah_multiquery | 8 needles; a question names 4 of the keys | the same |
| variables | vt | 2 values, each handed on to 5 variables | the same |

A needle is ``proud fox holds red lamp .``, a value is handed on by ``red lamp goes into paris .`` and ``paris also goes
into rome .``, filler is ``the river was often silent .``. Keys have two words, so that most needles of a long text
resemble the one that is asked for in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from needle_training.words import (
    ALSO,
    COLON,
    COMMA,
    GOES,
    HOLDS,
    INTO,
    LOOKS,
    OFTEN,
    OWNERS,
    PLACES,
    STATES,
    STOP,
    THINGS,
    TRAITS,
    VARIABLES,
)

SENTENCE = 6  # words, its full stop included
Words = tuple[str, ...]
Place = tuple[int, int]  # an own sentence, and a word of it


@dataclass(frozen=True)
class Question:
    """One question, and how it is to be answered."""

    words: Words  # how it ends the prompt
    answer: Words  # words that follow; a full stop or the end comes next
    values: tuple[Words, ...]  # the parts of the answer that have to be found, such as red lamp
    # For each word of the answer, which sentence of the text and which word of it an attention head can be shown to
    # copy it from, or None.
    sources: tuple[Place | None, ...]


@dataclass(frozen=True)
class Text:
    """Sentences, and questions of equal length about them."""

    sentences: list[Words]
    questions: list[Question]


@dataclass(frozen=True)
class Kind:
    """What a task's texts are made of."""

    own: int  # sentences that questions are about
    questions: int  # in a training sequence
    words: int  # of each question with its answer and full stop
    needles: float  # share of the other sentences that are needles of other keys; the rest is filler


KINDS = {
    "single": Kind(own=1, questions=1, words=6, needles=0.0),
    "multi-key": Kind(own=8, questions=8, words=6, needles=1.0),
    "multi-value": Kind(own=8, questions=2, words=15, needles=0.5),
    "multi-query": Kind(own=8, questions=2, words=36, needles=0.5),
    "variables": Kind(own=10, questions=2, words=10, needles=0.5),
}


def draw(rng: np.random.Generator, task: str, sentences: int) -> Text:
    """Draw a text and its questions; a prompt takes the first of these.

    Args:
        rng: Source of randomness; equal states give equal texts.
        task: One of :data:`KINDS`.
        sentences: Of the text, at least the task's own.

    Raises:
        ValueError: Too few sentences, or more than there are keys.
    """
    kind = KINDS[task]
    if not kind.own <= sentences <= len(TRAITS) * len(OWNERS):
        raise ValueError(f"a text of {task} has {kind.own} to {len(TRAITS) * len(OWNERS)} sentences, not {sentences}")
    keys = _keys(rng, sentences)
    own, questions = _variables(rng) if task == "variables" else _needles(rng, task, keys)
    places = np.sort(rng.permutation(sentences)[: len(own)])
    others = _others(rng, sentences - len(own), kind.needles, keys)
    hidden = dict(zip(places.tolist(), own, strict=True))
    text = [hidden.get(i) or next(others) for i in range(sentences)]
    return Text(text, [_placed(question, places) for question in questions])


def _needles(rng: np.random.Generator, task: str, keys: Iterator[Words]) -> tuple[list[Words], list[Question]]:
    """Return the needles of a text in order, and the questions about them."""
    if task == "multi-value":
        first, second = next(keys), next(keys)
        owners = [(first, second)[i] for i in rng.permutation([0] * 4 + [1] * 4)]
    else:
        owners = [next(keys) for _ in range(KINDS[task].own)]
    needles = [(key, *value, STOP) for key, value in zip(owners, _values(rng, len(owners)), strict=True)]
    own = [(*key, HOLDS, *rest) for key, *rest in needles]
    order = rng.permutation(len(own)).tolist()
    if task == "multi-query":
        return own, [_query(own, order[:4]), _query(own, order[4:])]
    if task == "multi-value":
        asked = [owners[order[0]], *(key for key in (first, second) if key != owners[order[0]])]
        return own, [_all_of(own, [i for i, key in enumerate(owners) if key == who]) for who in asked]
    return own, [_all_of(own, [i]) for i in order]


def _all_of(own: list[Words], found: list[int]) -> Question:
    """Ask for all values of a key, in the order of the text: ``proud fox holds``, ``red lamp , blue cup``."""
    values = tuple(own[i][3:5] for i in found)
    answer = [word for value in values for word in (*value, COMMA)][:-1]
    # A head can be shown the first value by its key; the others depend on what was answered before them.
    sources = [(found[0], 3), (found[0], 4), *[None] * (len(answer) - 2)]
    return Question(own[found[0]][:3], tuple(answer), values, tuple(sources))


def _query(own: list[Words], asked: list[int]) -> Question:
    """Ask for several keys at once: ``proud fox , shy owl :``, ``proud fox holds red lamp , shy owl holds …``."""
    question = [word for i in asked for word in (*own[i][:2], COMMA)][:-1]
    answer = [word for i in asked for word in (*own[i][:5], COMMA)][:-1]
    sources = [place for i in asked for place in (None, None, None, (i, 3), (i, 4), None)][:-1]
    return Question((*question, COLON), tuple(answer), tuple(own[i][3:5] for i in asked), tuple(sources))


def _variables(rng: np.random.Generator) -> tuple[list[Words], list[Question]]:
    """Return two chains of five variables, mixed, and questions for all variables of each: ``red lamp goes into``."""
    names = [VARIABLES[i] for i in rng.permutation(len(VARIABLES))[:10]]
    chains, values = (names[:5], names[5:]), _values(rng, 2)
    own, places, done = [], ([], []), [0, 0]
    for i in rng.permutation([0] * 5 + [1] * 5).tolist():
        step, name = done[i], chains[i][done[i]]
        before = values[i] if step == 0 else (chains[i][step - 1], ALSO)
        places[i].append((len(own), 4))
        own.append((*before, GOES, INTO, name, STOP))
        done[i] += 1
    asked = rng.permutation(2).tolist()
    return own, [
        Question((*values[i], GOES, INTO), tuple(chains[i]), tuple((name,) for name in chains[i]), tuple(places[i]))
        for i in asked
    ]


def _keys(rng: np.random.Generator, count: int) -> Iterator[Words]:
    """Yield different keys."""
    for i in rng.permutation(len(TRAITS) * len(OWNERS))[: count + 2].tolist():
        yield TRAITS[i // len(OWNERS)], OWNERS[i % len(OWNERS)]


def _values(rng: np.random.Generator, count: int) -> list[Words]:
    """Return different values."""
    chosen = rng.permutation(len(LOOKS) * len(THINGS))[:count].tolist()
    return [(LOOKS[i // len(THINGS)], THINGS[i % len(THINGS)]) for i in chosen]


def _others(rng: np.random.Generator, count: int, needles: float, keys: Iterator[Words]) -> Iterator[Words]:
    """Yield sentences that nothing is asked about."""
    is_needle = rng.random(count) < needles
    columns = (LOOKS, THINGS, PLACES, OFTEN, STATES)
    drawn = [rng.integers(len(words), size=count).tolist() for words in columns]
    for needle, look, thing, place, often, state in zip(is_needle, *drawn, strict=True):
        if needle:
            yield (*next(keys), HOLDS, LOOKS[look], THINGS[thing], STOP)
        else:
            yield ("the", PLACES[place], "was", OFTEN[often], STATES[state], STOP)


def _placed(question: Question, places: np.ndarray) -> Question:
    """Return a question whose sources count the text's sentences, not the task's own."""
    sources = tuple(None if source is None else (int(places[source[0]]), source[1]) for source in question.sources)
    return Question(question.words, question.answer, question.values, sources)

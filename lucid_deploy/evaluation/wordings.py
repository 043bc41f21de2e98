"""What a haystack is made of: needles, filler and questions, in English or in the bundled model's few words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lucid_deploy.demo import recall


def _words(text: str, between: str = " ") -> tuple[str, ...]:
    return tuple(text.split(between))


CITIES = _words(
    "Amsterdam Athens Baghdad Bangkok Barcelona Beijing Beirut Belgrade Berlin Bern Bogota Boston Brussels Bucharest "
    "Budapest Cairo Calgary Caracas Chicago Copenhagen Dakar Dallas Damascus Delhi Denver Dhaka Doha Dubai Dublin "
    "Edinburgh Florence Frankfurt Geneva Glasgow Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Jerusalem "
    "Kabul Kyiv Lagos Lima Lisbon Liverpool London Lyon Madrid Manila Marseille Melbourne Miami Milan Montreal Moscow "
    "Munich Nairobi Naples Osaka Oslo Ottawa Oxford Paris Perth Prague Quebec Reykjavik Riga Rome Santiago Seattle "
    "Seoul Shanghai Singapore Sofia Stockholm Sydney Tallinn Tehran Tokyo Toronto Tripoli Tunis Turin Valencia Vienna "
    "Vilnius Warsaw Wellington Zagreb Zurich"
)
_SUBJECTS = _words(
    "The old baker|A young sailor|My neighbour|The night porter|Our teacher|The gardener|A tired traveller|The clerk|"
    "Her brother|The museum guide|A street musician|The last passenger",
    "|",
)
_DEEDS = _words(
    "walked along the river|read the morning paper|waited for the slow train|painted the kitchen door|"
    "listened to the rain|looked for a lost umbrella|talked about the harvest|mended a broken chair|"
    "counted the boats in the harbour|wrote a long letter|slept through the afternoon|opened the window",
    "|",
)
_WHEN = _words(
    "before the shops opened|after a long silence|while the kettle boiled|in spite of the cold|"
    "as the bells began to ring|without saying a word|until it grew dark|on the way home",
    "|",
)


@dataclass(frozen=True)
class Wording:
    """How a haystack reads.

    Attributes:
        name: ``english`` or ``recall``.
        keys: What needles can be about; each at most once in a haystack.
        needle: From a key and a value, the sentence that states it.
        question: From a key, how its question ends the prompt; the answer goes on from there.
        value: Draws a value for a key.
        filler: Draws sentences without end that state nothing that is asked for, given the needles' keys.
        join: From sentences, the text.
        ends: Where an answer ends, a regular expression.
    """

    name: str
    keys: tuple[str, ...]
    needle: Callable[[str, str], str]
    question: Callable[[str], str]
    value: Callable[[np.random.Generator, str], str]
    filler: Callable[[np.random.Generator, list[str]], Iterator[str]]
    join: Callable[[list[str]], str]
    ends: str


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _english_filler(rng: np.random.Generator, _keys: list[str]) -> Iterator[str]:
    while True:
        yield f"{_pick(rng, _SUBJECTS)} {_pick(rng, _DEEDS)} {_pick(rng, _WHEN)}."


def _recall_filler(rng: np.random.Generator, keys: list[str]) -> Iterator[str]:
    """Held-out entries of animals that are not asked for; with long lists an animal comes more than once."""
    others = [animal for animal in recall.ANIMALS if animal not in keys]
    while True:
        for i in rng.permutation(len(others)):
            yield f"{others[i]} {recall.VERB} {_held_out_value(rng, others[i])}"


def _held_out_value(rng: np.random.Generator, animal: str) -> str:
    while True:
        adjective, thing = _pick(rng, recall.ADJECTIVES), _pick(rng, recall.THINGS)
        if recall.is_held_out(animal, adjective, thing):
            return f"{adjective} {thing}"


ENGLISH = Wording(
    name="english",
    keys=CITIES,
    needle=lambda key, value: f"The magic number of {key} is {value}.",
    question=lambda key: f"\nQuestion: What is the magic number of {key}?\nAnswer: The magic number of {key} is",
    value=lambda rng, _key: str(int(rng.integers(10000, 100000))),
    filler=_english_filler,
    join=" ".join,
    ends=r"\D",
)
RECALL = Wording(
    name="recall",
    keys=recall.ANIMALS,
    needle=lambda key, value: f"{key} {recall.VERB} {value}",
    question=lambda key: f"{recall.STOP} {key} {recall.VERB}",
    value=_held_out_value,
    filler=_recall_filler,
    join=f"{recall.COMMA} ".join,
    ends=r"[.,;\n]",
)
WORDINGS = {wording.name: wording for wording in (ENGLISH, RECALL)}

"""Multi-needle retrieval: several facts at known depths in a text of known length, with questions at its end.

Length is counted in tokens of the model's own tokenizer. A text is run once for all of its questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.task import SEED, Question, Task, TokenizerLike, can_write

DEPTHS = 5  # rows of the table
SPARE = 4  # tokens generated beyond the right answer's length, so that longer answers are not taken for right ones
LONGEST_BY_DEFAULT = 4096  # tokens; longer texts take long, so they have to be requested


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
class _Wording:
    """How to write the sentences of a text: in English, or in the few words that the bundled model knows."""

    name: str  # "english" or "recall"
    keys: tuple[str, ...]  # subjects of needles; each at most once in a text
    needle: Callable[[str, str], str]  # the sentence that states a key's value
    question: Callable[[str], str]  # the end of the prompt for a key; the answer follows
    value: Callable[[np.random.Generator, str], str]  # draws a value for a key
    filler: Callable[[np.random.Generator, list[str]], Iterator[str]]  # draws sentences without the given keys
    join: str  # separator between sentences
    ends: str  # a regular expression that matches where an answer ends


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _english_filler(rng: np.random.Generator, _keys: list[str]) -> Iterator[str]:
    while True:
        yield f"{_pick(rng, _SUBJECTS)} {_pick(rng, _DEEDS)} {_pick(rng, _WHEN)}."


def _recall_filler(rng: np.random.Generator, keys: list[str]) -> Iterator[str]:
    others = [animal for animal in recall.ANIMALS if animal not in keys]
    while True:
        for i in rng.permutation(len(others)):
            yield f"{others[i]} {recall.VERB} {_held_out_value(rng, others[i])}"


def _held_out_value(rng: np.random.Generator, animal: str) -> str:
    while True:
        adjective, thing = _pick(rng, recall.ADJECTIVES), _pick(rng, recall.THINGS)
        if recall.is_held_out(animal, adjective, thing):
            return f"{adjective} {thing}"


_ENGLISH = _Wording(
    name="english",
    keys=CITIES,
    needle=lambda key, value: f"The magic number of {key} is {value}.",
    question=lambda key: f"\nQuestion: What is the magic number of {key}?\nAnswer: The magic number of {key} is",
    value=lambda rng, _key: str(int(rng.integers(10000, 100000))),
    filler=_english_filler,
    join=" ",
    ends=r"\D",
)
_RECALL = _Wording(
    name="recall",
    keys=recall.ANIMALS,
    needle=lambda key, value: f"{key} {recall.VERB} {value}",
    question=lambda key: f"{recall.STOP} {key} {recall.VERB}",
    value=_held_out_value,
    filler=_recall_filler,
    join=f"{recall.COMMA} ",
    ends=r"[.,;\n]",
)


def needles_task(
    tokenizer: TokenizerLike,
    context: int | None,
    *,
    needles: int = 4,
    ask: int | None = None,
    lengths: Sequence[int] | None = None,
    limit: int = 200,
    seed: int = SEED,
) -> Task:
    """Return questions about needles in texts of several lengths.

    In text s of S, needle i of K comes after the share (i + (s + ½)/S)/K of the filler, so that the depths are known
    and spread evenly. Texts are in English if the tokenizer can encode it, else in the bundled model's words.

    Args:
        context: Most tokens that the model can run, new ones included; None: no limit.
        needles: Number of needles in a text, K.
        ask: Number of questions about a text, each for another needle; None: one for each needle.
        lengths: Most tokens of a prompt, question included. None: an eighth, a quarter, a half and all (less the
            answer's room) of the context, or of 4096 tokens if the context is longer or unlimited.
        limit: Number of questions for each length.
    """
    wording = _wording(tokenizer)
    if not 1 <= needles <= len(wording.keys):
        raise LucidError(f"The number of needles must be 1 to {len(wording.keys)}, not {needles}.")
    ask = needles if ask is None else ask
    if not 1 <= ask <= needles:
        raise LucidError(f"Of {needles} needles, 1 to {needles} can be asked for, not {ask}.")
    lengths = _lengths(tokenizer, context, lengths, wording)
    texts = -(-limit // ask)
    questions: list[Question] = []
    for length in lengths:
        rng = np.random.default_rng([seed, length])
        of_length: list[Question] = []
        for text in range(texts):
            depths = (np.arange(needles) + (text + 0.5) / texts) / needles
            maker = _NeedleText(tokenizer, wording, rng, depths, ask)
            of_length += maker.questions(length, number=len(questions) + text)
        questions += of_length[:limit]
    settings = {
        "needles": needles,
        "ask": ask,
        "lengths": list(lengths),
        "limit": limit,
        "seed": seed,
        "wording": wording.name,
    }
    return Task("needles", settings, questions, wording.ends, rows="depth", columns="length")


class _NeedleText:
    """One text: needles at given shares of the filler, and as much filler as a length has room for."""

    def __init__(
        self, tokenizer: TokenizerLike, wording: _Wording, rng: np.random.Generator, depths: np.ndarray, ask: int
    ) -> None:
        self._tokenizer, self._wording, self._depths = tokenizer, wording, depths
        keys = [wording.keys[i] for i in rng.permutation(len(wording.keys))[: len(depths)]]
        self._needles = [(key, wording.value(rng, key)) for key in keys]
        self._asked = sorted(rng.permutation(len(depths))[:ask].tolist())
        self._source, self._filler = wording.filler(rng, keys), list[str]()

    def questions(self, length: int, number: int) -> list[Question]:
        """Return a question for each chosen needle, with prompts of at most ``length`` tokens."""
        longest = max((self._needles[i][0] for i in self._asked), key=lambda key: self._tokens(0, key))
        if (least := self._tokens(0, longest)) > length:
            raise LucidError(
                f"{len(self._needles)} needles and a question take {least} tokens and do not fit in {length}. Choose "
                "longer texts or fewer needles."
            )
        high = 1
        while self._tokens(high, longest) <= length:
            high *= 2
        low = high // 2  # this many sentences of filler fit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._tokens(middle, longest) <= length else (low, middle)
        questions = []
        for i in self._asked:
            (key, value), depth = self._needles[i], float(self._depths[i])
            labels = {"length": length, "depth": _row(depth), "at": depth}
            questions.append(Question(self._prompt(low, key), value, labels, number))
        return questions

    def _tokens(self, filler: int, asked: str) -> int:
        return len(self._tokenizer.encode(self._prompt(filler, asked)))

    def _prompt(self, filler: int, asked: str) -> str:
        self._filler += itertools.islice(self._source, max(0, filler - len(self._filler)))
        sentences, before = list[str](), 0
        for depth, needle in zip(self._depths, self._needles, strict=True):
            here = round(float(depth) * filler)
            sentences += [*self._filler[before:here], self._wording.needle(*needle)]
            before = here
        sentences += self._filler[before:filler]
        return self._wording.join.join(sentences) + self._wording.question(asked)


def _row(depth: float) -> str:
    """Return the row of the table that a depth belongs to, such as ``20-40 %``."""
    row, step = int(depth * DEPTHS), 100 // DEPTHS
    return f"{row * step}-{(row + 1) * step} %"


def _wording(tokenizer: TokenizerLike) -> _Wording:
    """Return the first wording that the tokenizer can encode without loss; raise a LucidError if there is none."""
    for wording in (_ENGLISH, _RECALL):
        rng, key = np.random.default_rng(0), wording.keys[0]
        filler = itertools.islice(wording.filler(rng, [key]), 3 * len(wording.keys))
        sample = [*filler, *(wording.needle(key, wording.value(rng, key)) for key in wording.keys)]
        if can_write(tokenizer, wording.join.join(sample) + wording.question(key)):
            return wording
    raise LucidError("This tokenizer cannot encode needles in English or in the demo's words. Choose another --task.")


def _lengths(
    tokenizer: TokenizerLike, context: int | None, lengths: Sequence[int] | None, wording: _Wording
) -> list[int]:
    """Return the lengths of prompts in ascending order; raise a LucidError if one does not fit in the context."""
    rng = np.random.default_rng(0)
    answers = (wording.value(rng, key) for key in wording.keys)
    room = SPARE + max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in answers)
    if lengths is None:
        most = min(context or LONGEST_BY_DEFAULT, LONGEST_BY_DEFAULT)
        lengths = [most // 8, most // 4, most // 2, most - room]
    if not lengths or min(lengths) < 1:
        raise LucidError("Lengths must be whole numbers of tokens, at least one of them, such as --length 512,1024.")
    if context is not None and max(lengths) + room > context:
        raise LucidError(
            f"A text of {max(lengths)} tokens and {room} tokens for an answer exceed the model's context of {context}. "
            f"The longest length is {context - room}; --allow-extrapolation lifts the limit."
        )
    return sorted(set(lengths))

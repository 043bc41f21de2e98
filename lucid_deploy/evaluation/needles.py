"""Multi-needle retrieval: several facts hidden at known depths in a text of known length, and asked for at its end.

Length is counted in tokens of the model's own tokenizer. A text is run once, however many of its needles are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.run import SPARE
from lucid_deploy.evaluation.task import Question, Task, TokenizerLike, can_write, check_seed_and_limit
from lucid_deploy.evaluation.wordings import WORDINGS, Wording

SEED = 2026
DEPTHS = 5  # rows of the table
LONGEST_BY_DEFAULT = 4096  # tokens; longer ones have to be asked for, since they take long


def needles_task(
    tokenizer: TokenizerLike,
    context: int | None,
    *,
    needles: int = 4,
    ask: int | None = None,
    lengths: Sequence[int] | None = None,
    limit: int = 200,
    seed: int = SEED,
    wording: str = "auto",
) -> Task:
    """Return questions about needles in texts of several lengths.

    In text s of S, needle i of K lies behind the share (i + (s + ½)/S)/K of the filler, so that all depths are covered
    evenly and each is known.

    Args:
        tokenizer: Of the model.
        context: Most tokens the model takes, new ones included; None: any number.
        needles: Needles in a text, K.
        ask: How many of them are asked for, one after the other; None: all.
        lengths: Tokens of a prompt, question included: as many as fit, at most one filler sentence fewer; None: an
            eighth, a quarter, a half and all of the context, of at most 4096 tokens of it.
        limit: Questions for each length.
        seed: Equal seeds give equal texts.
        wording: ``english``, ``recall`` (the words of the bundled model) or ``auto``: the one the tokenizer can write.

    Raises:
        LucidError: Numbers that make no sense, needles that do not fit in a length, a length beyond the context, or a
            tokenizer that cannot write the words.
    """
    check_seed_and_limit(seed, limit)
    chosen = _wording(tokenizer, wording)
    if not 1 <= needles <= len(chosen.keys):
        raise LucidError(f"The number of needles must be 1 to {len(chosen.keys)}, not {needles}.")
    ask = needles if ask is None else ask
    if not 1 <= ask <= needles:
        raise LucidError(f"Of {needles} needles, 1 to {needles} can be asked for, not {ask}.")
    lengths = _lengths(tokenizer, context, lengths, chosen)
    texts = -(-limit // ask)
    questions: list[Question] = []
    for length in lengths:
        rng = np.random.default_rng([seed, length])
        of_length: list[Question] = []
        for text in range(texts):
            maker = _NeedleText(tokenizer, chosen, rng, needles, ask)
            depths = (np.arange(needles) + (text + 0.5) / texts) / needles
            of_length += maker.questions(length, depths, number=len(questions) + text)
        questions += of_length[:limit]
    settings = {
        "needles": needles,
        "ask": ask,
        "lengths": list(lengths),
        "limit": limit,
        "seed": seed,
        "wording": chosen.name,
    }
    return Task("needles", settings, questions, chosen.ends, rows="depth", columns="length")


class _NeedleText:
    """One text: its needles, and as much filler as a length has room for."""

    def __init__(
        self, tokenizer: TokenizerLike, wording: Wording, rng: np.random.Generator, needles: int, ask: int
    ) -> None:
        self.tokenizer, self.wording = tokenizer, wording
        keys = [wording.keys[i] for i in rng.permutation(len(wording.keys))[:needles]]
        self.needles = [(key, wording.value(rng, key)) for key in keys]
        self.asked = sorted(rng.permutation(needles)[:ask].tolist())
        self._source, self._filler = wording.filler(rng, keys), list[str]()

    def questions(self, length: int, depths: np.ndarray, number: int) -> list[Question]:
        """Return one question for each needle that is asked for.

        Args:
            length: Most tokens of a prompt.
            depths: Of each needle, as shares of the filler before it.
            number: Of the text, as :attr:`Question.context`.
        """
        filler = self._most_filler(length, depths)
        labels = [{"length": length, "depth": _range(float(depth))} for depth in depths]
        return [
            Question(self._prompt(filler, depths, i), self.needles[i][1], {**labels[i], "at": float(depths[i])}, number)
            for i in self.asked
        ]

    def _most_filler(self, length: int, depths: np.ndarray) -> int:
        """How many sentences of filler fit."""
        longest = max(self.asked, key=lambda i: self._tokens(0, depths, i))
        least = self._tokens(0, depths, longest)
        if least > length:
            raise LucidError(
                f"{len(self.needles)} needles and a question take {least} tokens and do not fit in a length of "
                f"{length}. Ask for longer texts or fewer needles."
            )
        high = 1
        while self._tokens(high, depths, longest) <= length:
            high *= 2
        low = high // 2  # fits, or is 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._tokens(middle, depths, longest) <= length else (low, middle)
        return low

    def _tokens(self, filler: int, depths: np.ndarray, asked: int) -> int:
        return len(self.tokenizer.encode(self._prompt(filler, depths, asked)))

    def _prompt(self, filler: int, depths: np.ndarray, asked: int) -> str:
        self._filler += itertools.islice(self._source, max(0, filler - len(self._filler)))
        sentences, before = list[str](), 0
        for depth, needle in zip(depths, self.needles, strict=True):
            here = round(float(depth) * filler)
            sentences += [*self._filler[before:here], self.wording.needle(*needle)]
            before = here
        sentences += self._filler[before:filler]
        return self.wording.join(sentences) + self.wording.question(self.needles[asked][0])


def _range(depth: float) -> str:
    """Return which row of the table a depth belongs to, such as ``20-40 %``; in order as text too."""
    row, step = int(depth * DEPTHS), 100 // DEPTHS
    return f"{row * step}-{(row + 1) * step} %"


def _wording(tokenizer: TokenizerLike, name: str) -> Wording:
    if name != "auto" and name not in WORDINGS:
        raise LucidError(f"Wording {name!r} is not known; known are auto, {', '.join(WORDINGS)}.")
    candidates = list(WORDINGS.values()) if name == "auto" else [WORDINGS[name]]
    for wording in candidates:
        rng = np.random.default_rng(0)
        key = wording.keys[0]
        filler = itertools.islice(wording.filler(rng, [key]), 3 * len(wording.keys))
        sample = [*filler, *(wording.needle(key, wording.value(rng, key)) for key in wording.keys)]
        if can_write(tokenizer, wording.join(sample) + wording.question(key)):
            return wording
    raise LucidError(
        f"This model's tokenizer cannot write the texts of wording {' or '.join(w.name for w in candidates)}, so it "
        "cannot be asked."
    )


def _lengths(
    tokenizer: TokenizerLike, context: int | None, lengths: Sequence[int] | None, wording: Wording
) -> list[int]:
    """Return the lengths to ask at, checked against the context."""
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

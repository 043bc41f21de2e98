"""Answers that follow constraints, drawn by the sampler from random logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.constraint import Constraint
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.sampling import Sampler, Sampling
from tests.generation.sample_tokenizers import make

KINDS = ["byte-level bpe", "byte fallback", "word level"]
SIZE = 340  # the model's vocabulary, larger than that of each tokenizer
END = 0
# Tokens of a vocabulary of words, which are joined by spaces; JSON has no space inside a number.
_SIGNS = '{ } [ ] : , "" "a" "b" "fox" "red" "key" "k" "v" "n_a" "t_b" "kind" "x" "y" "leaf" "next" "age" "name" "kids"'
WORDS = ["</s>", "[UNK]", *_SIGNS.split(), *"true false null 0 1 5 7 -3 28 0.5 105".split()]  # noqa: SIM905


def tokenizer_of(kind: str, directory: Path) -> TextTokenizer:
    if kind != "word level":
        return make(kind, directory)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["</s>", "[UNK]"])
    words.save(str(directory / "tokenizer.json"))
    return TextTokenizer(directory)


def walk(
    guides: GuideFactory, tokenizer: TextTokenizer, constraint: Constraint, seed: int, most: int = 400
) -> tuple[str, bool]:
    """Return the text of an answer, and whether it is finished rather than cut by length."""
    rng, choose = np.random.default_rng(seed), Sampler(Sampling(1.0, seed=seed))
    closing = np.array([(tokenizer.piece(i) or "")[:1] in ('"', "}", "]", "") for i in range(SIZE)])
    closing[END] = True
    guide, ids = guides.open(constraint).result(), []
    while len(ids) < most:
        allowed = guide.allowed()
        if allowed is None:
            return tokenizer.decode(ids), True
        token = choose(rng.normal(size=SIZE) * 2 + 5 * closing * (len(ids) > 20), allowed)
        if token == END:
            return tokenizer.decode(ids), True
        assert not tokenizer.is_special(token)
        ids.append(token)
        guide.advance(token)
    return tokenizer.decode(ids), False

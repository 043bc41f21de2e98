"""Logits that depend on all that was seen, and prompts that begin alike."""

from __future__ import annotations

import numpy as np

from lucid_deploy.evaluation.shared import TokenizedText
from lucid_deploy.runtimes.session import Array

VOCAB = 23


def chaotic(history: list[int]) -> Array:
    """Logits that depend on every token of the history and on their order."""
    return np.random.default_rng([len(history), *history]).normal(size=VOCAB).astype(np.float32) * 3


def groups_of(seed: int, vocab: int, longest: int = 40) -> list[list[list[int]]]:
    """Groups of one to three prompts that begin alike, of many lengths; one group has a repeated prompt."""
    rng = np.random.default_rng(seed)
    groups = []
    for size in (1, 3, 2, 1, 3, 1, 2):
        start = rng.integers(3, vocab, rng.integers(1, longest)).tolist()
        groups.append([[*start, *rng.integers(3, vocab, rng.integers(1, 6)).tolist()] for _ in range(size)])
    groups.append([[7, 8, 9], [7, 8, 9]])
    return groups


def pairs_of(seed: int, vocab: int) -> list[tuple[list[int], list[int]]]:
    """Contexts, some of them shared, with continuations of one to seven tokens."""
    rng = np.random.default_rng(seed)
    pairs = []
    for continuations in (4, 1, 2, 1, 1):
        context = rng.integers(3, vocab, rng.integers(1, 30)).tolist()
        pairs += [(context, rng.integers(3, vocab, rng.integers(1, 8)).tolist()) for _ in range(continuations)]
    return pairs


def tokenized(groups: list[list[list[int]]]) -> list[list[TokenizedText]]:
    return [[TokenizedText(prompt) for prompt in group] for group in groups]

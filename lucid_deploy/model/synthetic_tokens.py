"""Token sequences to try a model with, made from the size of its vocabulary and, if given, its embeddings.

LUCID's triangular solve does next to nothing on independent random keys, so random tokens alone would pass with a wrong
solve. Repeated and correlated tokens give keys close to each other, for which the result depends on the solve.
"""

from __future__ import annotations

import numpy as np

from lucid_deploy.cache.storage import Array

RANDOM, ONE_TOKEN, PATTERN = "random", "one token", "pattern"
CORRELATED = "correlated"  # keys that resemble each other: the hardest for the solve
PATTERN_TOKENS = 7  # period of the repeated pattern
NEIGHBOURS = 8  # tokens that the correlated sequence draws from
# Without position encoding, a sequence of one token has the same score everywhere. Its rounding error would be a single
# random draw, and a gate derived from a lucky draw too narrow for a correct candidate (seen in 2 or more of 120 runs).
# So that sequence begins with this many other tokens, each twice: as many draws of the same kind of error.
PAIRED_TOKENS = 16


def synthetic_tokens(
    vocabulary: int, total: int, prompt: int, seed: int = 0, embeddings: Array | None = None
) -> dict[str, Array]:
    """Return four sequences by name, int64 ``(total,)`` each: random, one token, a pattern, and correlated.

    Args:
        prompt: Length of the prompt; in the sequence of one token, at most half of the prompt is other tokens.
        embeddings: ``(vocab, hidden)``; with them, correlated tokens are neighbours in cosine distance.
    """
    rng = np.random.default_rng(seed)
    return {
        RANDOM: rng.integers(vocabulary, size=total),
        ONE_TOKEN: _one_token(rng, vocabulary, prompt, total),
        PATTERN: np.resize(rng.integers(vocabulary, size=PATTERN_TOKENS), total),
        CORRELATED: rng.choice(_neighbours(rng, vocabulary, embeddings), size=total),
    }


def _one_token(rng: np.random.Generator, vocabulary: int, prompt: int, total: int) -> Array:
    """Return a few pairs of equal tokens, in at most half of the prompt, and one token from there on."""
    ids = np.full(total, rng.integers(vocabulary))
    pairs = min(PAIRED_TOKENS, prompt // 4)
    ids[: 2 * pairs] = np.repeat(rng.integers(vocabulary, size=pairs), 2)
    return ids


def _neighbours(rng: np.random.Generator, vocabulary: int, embeddings: Array | None) -> Array:
    """Return a few token ids whose embeddings are close; without embeddings, any few."""
    count = min(NEIGHBOURS, vocabulary)
    if embeddings is None:
        return rng.choice(vocabulary, size=count, replace=False)
    centre = embeddings[rng.integers(vocabulary)]
    # An all-zero embedding (unused tokens) has no direction: it counts as farthest, not as a division by zero.
    norms = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(centre)
    cosine = np.divide(embeddings @ centre, norms, out=np.full(len(norms), -1.0), where=norms > 0)
    return np.argsort(-cosine, kind="stable")[:count]

"""Token sequences for testing a model, generated from its vocabulary size and, if given, its embeddings.

LUCID's triangular solve is almost the identity for independent random keys, so with random tokens alone a wrong solve
would go unnoticed. Repeated and correlated tokens have similar keys, for which the result depends on the solve.
"""

from __future__ import annotations

import numpy as np

from lucid_deploy.cache.storage import Array

RANDOM, ONE_TOKEN, PATTERN = "random", "one token", "pattern"
CORRELATED = "correlated"  # tokens with similar keys: the hardest case for the solve
PATTERN_TOKENS = 7  # period of the repeated pattern
NEIGHBOURS = 8  # distinct tokens in the correlated sequence
# Without position encoding, all attention scores of a sequence of one repeated token are equal, so its rounding error
# is a single random sample, and a tolerance derived from a small sample may reject a correct candidate (seen in 2 or
# more of 120 runs). So this sequence begins with this many other tokens, each twice, for more samples of that error.
PAIRED_TOKENS = 16


def synthetic_tokens(
    vocabulary: int, total: int, prompt: int, seed: int = 0, embeddings: Array | None = None
) -> dict[str, Array]:
    """Return four sequences by name, int64 ``(total,)`` each: random, one token, a pattern, and correlated.

    Args:
        prompt: Length of the prompt; the sequence of one token has other tokens in at most the first half of it.
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
    """Return a few pairs of equal tokens, in at most half of the prompt, followed by one repeated token."""
    ids = np.full(total, rng.integers(vocabulary))
    pairs = min(PAIRED_TOKENS, prompt // 4)
    ids[: 2 * pairs] = np.repeat(rng.integers(vocabulary, size=pairs), 2)
    return ids


def _neighbours(rng: np.random.Generator, vocabulary: int, embeddings: Array | None) -> Array:
    """Return a few token ids with similar embeddings; without embeddings, random ones."""
    count = min(NEIGHBOURS, vocabulary)
    if embeddings is None:
        return rng.choice(vocabulary, size=count, replace=False)
    centre = embeddings[rng.integers(vocabulary)]
    # An all-zero embedding (unused tokens) has no direction: treat it as farthest instead of dividing by zero.
    norms = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(centre)
    cosine = np.divide(embeddings @ centre, norms, out=np.full(len(norms), -1.0), where=norms > 0)
    return np.argsort(-cosine, kind="stable")[:count]

"""Several tokens at once against one after the other, and taking them back, in every runtime that can."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.generation.speculation import near_share
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.several import MOST
from lucid_deploy.runtimes.take_back import make_room, pack, take_back

TWO_KINDS = {"lucid_layers": [0]}  # and a layer of standard attention
RUNTIMES = [
    ("torch", {}, {}),
    ("onnxruntime", {"kernels": "functions"}, {}),
    ("onnxruntime", {"kernels": "library"}, {}),
    ("onnxruntime", {"kernels": "functions"}, {"cache": "static"}),
    ("onnxruntime", {"kernels": "library"}, {"cache": "static"}),
    ("onnxruntime", {"kernels": "library"}, {"cache": "static", "cache_dtype": "int8"}),
    ("onnxruntime", {"kernels": "functions"}, {"cache_dtype": "int8"}),
    ("torch", {}, {"cache_dtype": "int8"}),
    ("onnxruntime", {"kernels": "library"}, {"cache_dtype": "fp8"}),
]
PROMPT, NEW = 40, 9
RNG = np.random.default_rng(0)
IDS, TOKENS = RNG.integers(2, 97, (2, PROMPT)), RNG.integers(2, 97, (2, NEW))


def close(got, wanted, session):
    """Float32 sums in another order; new tokens may see each other before they are rounded to int8 or fp8."""
    size = np.abs(wanted).max()
    rounds = session.cache_dtype != session.dtype
    limit = near_share(session.dtype, session.cache_dtype) if rounds else 2e-5
    assert np.abs(got - wanted).max() <= limit * size


@pytest.fixture(params=RUNTIMES, ids=lambda p: "-".join([p[0], *p[1].values(), *p[2].values()]))
def session(request, exported, built_library):
    runtime, options, stored = request.param
    return open_session(exported(**stored, **TWO_KINDS)[1], runtime, **options)


def one_by_one(session, rows):
    cache = session.empty_cache(len(rows))
    session.prefill(IDS[rows], cache)
    return np.concatenate([session.decode(TOKENS[rows, i : i + 1], cache) for i in range(NEW)], axis=1)


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_it_is_decoding_one_by_one_and_going_back_is_exact(session, rows):
    wanted = one_by_one(session, rows)
    cache = session.empty_cache(len(rows))
    session.prefill(IDS[rows], cache)
    drafts = TOKENS[rows, :6].copy()
    kept = np.array([3, 5])[: len(rows)]
    for row, right in enumerate(kept):
        drafts[row, right:] = 96 - drafts[row, right:]  # rejected
    logits = session.decode_several(drafts, cache)
    take_back(session, cache, 6, kept)
    assert (cache.mask.sum(axis=1) == PROMPT + kept).all()
    for row, right in enumerate(kept):
        close(logits[row, :right], wanted[row, :right], session)
    behind = np.stack([TOKENS[row, right : right + 4] for row, right in zip(rows, kept, strict=True)])
    mask = np.ones(behind.shape, dtype=bool)
    mask[0, 2:] = False  # a row with fewer drafts than the others
    logits = session.decode_several(behind, cache, mask)
    for row, right in enumerate(kept):
        shown = int(mask[row].sum())
        close(logits[row, :shown], wanted[row, right : right + shown], session)
    take_back(session, cache, 4, mask.sum(axis=1))
    after = np.array([[TOKENS[row, 5]] for row in rows])  # row 0 has its first five
    close(session.decode(after, cache)[0], wanted[0, 5:6], session)


def test_a_cache_with_many_holes_is_packed(exported):
    session = open_session(exported(**TWO_KINDS)[1], "onnxruntime", kernels="functions")
    cache = session.empty_cache(1)
    session.prefill(IDS[:1], cache)
    wanted = session.decode(TOKENS[:1, :1], session.fork(cache))
    longest = 0
    for _ in range(8):
        session.decode_several(np.repeat(TOKENS[:1, :1], MOST, axis=1), cache)
        take_back(session, cache, MOST, np.array([0]))
        longest = max(longest, cache.length)
    assert longest > PROMPT + 32 and cache.length < PROMPT + 64 + 2 * MOST
    pack(session, cache)
    assert cache.length == PROMPT and cache.mask.all()
    close(session.decode(TOKENS[:1, :1], cache), wanted, session)


def test_holes_take_no_room_of_the_context(exported):
    artifact = exported(**TWO_KINDS, max_position_embeddings=64)[1]
    session = open_session(artifact, "onnxruntime", kernels="functions")
    cache = session.empty_cache(1)
    session.prefill(IDS[:1], cache)
    for _ in range(4):
        make_room(session, cache, MOST)
        session.decode_several(np.repeat(TOKENS[:1, :1], MOST, axis=1), cache)
        take_back(session, cache, MOST, np.array([1]))
    assert cache.mask.sum() == PROMPT + 4

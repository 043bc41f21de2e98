"""The step that verifies drafts: compared with decoding one by one, with rejected tokens taken back; refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.speculation import near_share
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_rows import make_room, pack, take_back
from lucid_deploy.runtimes.session import MOST
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED

RUNTIMES = [
    ("torch", {}, {}),
    ("onnxruntime", {"kernels": "functions"}, {"attention_type": "llama"}),
    ("onnxruntime", {"kernels": "library"}, {}),
    ("onnxruntime", {"kernels": "functions"}, {"cache": "static"}),
    ("onnxruntime", {"kernels": "library"}, {"cache": "static"}),
    ("onnxruntime", {"kernels": "library"}, {"cache": "static", "cache_dtype": "int8"}),
    ("onnxruntime", {"kernels": "functions"}, {"cache_dtype": "int8"}),
    ("openvino", {}, {"inline": True}),
]
PROMPT, NEW = 40, 9
RNG = np.random.default_rng(0)
IDS, TOKENS = RNG.integers(2, 97, (2, PROMPT)), RNG.integers(2, 97, (2, NEW))


def close(got, wanted, session):
    """Float32 sums may have another order, and new tokens may see each other before rounding to int8 or fp8."""
    size = np.abs(wanted).max()
    rounds = session.cache_dtype != session.dtype
    limit = near_share(session.dtype, session.cache_dtype) if rounds else 2e-5
    assert np.abs(got - wanted).max() <= limit * size


@pytest.fixture(params=RUNTIMES, ids=lambda p: "-".join([p[0], *p[1].values(), *map(str, p[2].values())]))
def session(request, exported, built_library):
    runtime, options, stored = request.param
    return open_session(exported(**stored)[1], runtime, **options)


def one_by_one(session, rows):
    cache = session.empty_cache(len(rows))
    session.prefill(IDS[rows], cache)
    return np.concatenate([session.decode(TOKENS[rows, i : i + 1], cache) for i in range(NEW)], axis=1)


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_drafts_give_the_logits_of_single_steps_also_after_some_are_taken_back(session, rows):
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


def test_a_cache_with_much_padding_is_packed(exported):
    session = open_session(exported()[1], "onnxruntime", kernels="functions")
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


def test_rejected_drafts_do_not_count_towards_the_context(exported):
    artifact = exported(max_position_embeddings=64)[1]
    session = open_session(artifact, "onnxruntime", kernels="functions")
    cache = session.empty_cache(1)
    session.prefill(IDS[:1], cache)
    for _ in range(4):
        make_room(session, cache, MOST)
        session.decode_several(np.repeat(TOKENS[:1, :1], MOST, axis=1), cache)
        take_back(session, cache, MOST, np.array([1]))
    assert cache.mask.sum() == PROMPT + 4


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (np.ones((1, MOST + 1), np.int64), None, f"Up to {MOST} tokens"),
        (np.ones((1, 3), np.int64), np.array([[True, False, True]]), "padding before a token"),
        (np.ones((1, 3), np.int64), np.ones((1, 2), bool), "The mask has shape"),
    ],
)
def test_too_many_tokens_and_wrong_masks_are_refused(exported, ids, mask, message):
    session = open_session(exported()[1], "torch")
    with pytest.raises(LucidError, match=message):
        session.decode_several(ids, session.empty_cache(1), mask)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, MIXED, "layer 2 .window. keeps only the last 9 tokens"),
        ({"cache": "static", "opset": 23}, {}, "export without --opset 23"),
    ],
)
def test_artifacts_without_a_verify_graph_say_why(exported, options, changes, message):
    session = open_session(exported(**options, **changes)[1], "onnxruntime", kernels="auto")
    with pytest.raises(LucidError, match=message):
        session.decode_several(TOKENS[:1], session.empty_cache(1))


@pytest.mark.parametrize("past", [240, 255, 256])
def test_drafts_beyond_the_buffers_of_a_static_cache_are_computed_right(exported, past):
    """Buffers made for 200 tokens have room for 256, where one more token may fit but not a step's drafts."""
    checkpoint, artifact = exported(cache="static")
    session = open_session(artifact, "onnxruntime", kernels="functions")
    reference = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    ids = np.random.default_rng(past).integers(2, 97, (1, past + MOST + 1))
    ids[:, past // 2 : past] = 11  # one token repeated: correlated keys
    exact = reference.prefill_all(ids, reference.empty_cache(1))
    cache = session.empty_cache(1)
    session.prefill(ids[:, :200], cache)
    for place in range(200, past):
        session.decode(ids[:, place : place + 1], cache)
    found = [session.decode_several(ids[:, past : past + MOST], cache), session.decode(ids[:, past + MOST :], cache)]
    got = np.concatenate(found, axis=1)
    assert np.linalg.norm(got - exact[:, past:]) <= 1e-4 * np.linalg.norm(exact[:, past:])

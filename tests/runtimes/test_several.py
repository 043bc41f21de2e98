"""What is refused where several tokens are to be decoded at once, and why."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.several import MOST, layers_obstacle
from tests.conftest import MIXED

TWO_KINDS = {"lucid_layers": [0]}  # and a layer of standard attention
TOKENS = np.full((1, 9), 7)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (np.ones((1, MOST + 1), np.int64), None, f"Up to {MOST} tokens"),
        (np.ones((1, 3), np.int64), np.array([[True, False, True]]), "padding before a token"),
        (np.ones((1, 3), np.int64), np.ones((1, 2), bool), "The mask is"),
    ],
)
def test_what_does_not_fit(exported, ids, mask, message):
    session = open_session(exported(**TWO_KINDS)[1], "torch")
    with pytest.raises(LucidError, match=message):
        session.decode_several(ids, session.empty_cache(1), mask)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, MIXED, "layer 2 .window. keeps the last 9 tokens only"),
        ({"inline": True}, {}, "--inline wrote have no operators"),
        ({"cache": "static", "opset": 23}, {}, "export without --opset 23"),
    ],
)
def test_what_cannot_says_why(exported, options, changes, message):
    session = open_session(exported(**options, **changes)[1], "onnxruntime", kernels="auto")
    with pytest.raises(LucidError, match=message):
        session.decode_several(TOKENS[:1], session.empty_cache(1))


def test_a_state_cannot_go_back(exported):
    layer = exported(**TWO_KINDS)[1].manifest.layers[1]
    state = CacheTensor("recurrent_state", "float32", (2, 4, 4), "state")
    layers = (layer, dataclasses.replace(layer, kind="delta", cache=(state,)))
    assert layers_obstacle(layers) == (
        "layer 1 (delta) keeps a state, recurrent_state, into which every token is mixed, so that rejected ones cannot "
        "be taken out again"
    )


def test_layers_with_rows_alone_can(exported):
    assert layers_obstacle(exported(**TWO_KINDS)[1].manifest.layers) is None

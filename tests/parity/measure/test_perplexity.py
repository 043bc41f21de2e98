"""Perplexities, against the plain formula."""

import math

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.parity.measure.perplexity import perplexity, session_logits, surprisals, windows
from tests.parity.small_models import VOCAB, in_dtype, layers, session


def nothing():
    pass


def test_perplexity_is_that_of_the_plain_formula(model):
    ids = np.random.default_rng(5).integers(VOCAB, size=75)
    pieces = windows(ids, limit=48)
    assert [len(piece) for piece in pieces] == [48, 27]
    scores = []
    for piece in pieces:
        logits, _ = in_dtype(model, torch.float64)(torch.from_numpy(piece[None]))
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.from_numpy(piece[1:]), reduction="none")
        scores.append(loss.detach().numpy())
    wanted = np.concatenate(scores)
    one_shot = surprisals(layers(model, torch.float64).logits, pieces, nothing)
    by_session = surprisals(session_logits(session(model)), pieces, nothing)
    np.testing.assert_allclose(one_shot, wanted, rtol=1e-9)
    np.testing.assert_allclose(by_session, wanted, rtol=1e-3, atol=1e-4)
    found = perplexity(wanted, wanted, by_session, 48)
    assert found.tokens == 73 and found.reference == pytest.approx(math.exp(wanted.mean()))
    assert abs(found.difference) < 1e-2 * found.reference


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_text_too_short_for_a_perplexity(tokens):
    with pytest.raises(LucidError, match=f"{tokens} tokens"):
        windows(np.zeros(tokens, dtype=np.int64), 48)

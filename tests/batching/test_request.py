"""Which requests are refused, and the log-probabilities of tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.batching.request import Request, log_probabilities
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling


def test_log_probabilities_equal_those_of_pytorch() -> None:
    raw = (20 * np.random.default_rng(0).standard_normal(4001)).astype(np.float32)
    wanted = torch.log_softmax(torch.from_numpy(raw).double(), 0)
    found, top = log_probabilities(raw, 17, 20)
    assert found == pytest.approx(wanted[17].item(), rel=1e-12)
    best = wanted.topk(20)
    assert [token for token, _ in top] == best.indices.tolist()
    np.testing.assert_allclose([value for _, value in top], best.values.numpy(), rtol=1e-12)
    assert log_probabilities(raw, 0, None) == (None, ())
    assert log_probabilities(np.zeros(4, np.float32), 2, 0) == (pytest.approx(-np.log(4)), ())


def check_length(tokens: int) -> None:
    if tokens > 10:
        raise LucidError(f"The context would be {tokens} tokens.")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 5), "The prompt is empty"),
        (Request([1, 97], 5), "Token id 97 is outside the vocabulary"),
        (Request([1] * 11, 5), "context would be 11 tokens"),
        (Request([1], 0), "max_new_tokens must be at least 1"),
        (Request([1], 5, top_logprobs=98), "top_logprobs must be 0 to 97"),
        (Request([1], 5, Sampling(logit_bias=((97, 1.0),))), "logit_bias: token id 97 is outside"),
        (Request([1] * 10, 1, top_logprobs=97), ""),
    ],
)
def test_requests_that_cannot_run_are_refused(request_: Request, message: str) -> None:
    session: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=97), check_length=check_length)
    if not message:
        request_.check(session)
        return
    with pytest.raises(LucidError, match=message):
        request_.check(session)

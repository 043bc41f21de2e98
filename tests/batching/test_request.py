"""Requests are compared with what a session can run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.batching.request import Request
from lucid_deploy.errors import LucidError


def check_length(tokens: int) -> None:
    if tokens > 10:
        raise LucidError(f"The context would be {tokens} tokens.")


SESSION: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=97), check_length=check_length)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 5), "The prompt is empty"),
        (Request([1, 97], 5), "Token id 97 is outside the vocabulary"),
        (Request([-1], 5), "Token id -1"),
        (Request([10**30], 5), "outside the vocabulary"),
        (Request([1] * 11, 5), "context would be 11 tokens"),
        (Request([1], 0), "max_new_tokens must be at least 1"),
        (Request([1], 5, top_logprobs=98), "top_logprobs must be 0 to 97"),
        (Request([1], 5, top_logprobs=-1), "top_logprobs must be 0 to 97"),
    ],
)
def test_requests_that_cannot_run(request_: Request, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        request_.check(SESSION)


def test_requests_that_can() -> None:
    Request([96] * 10, 1, top_logprobs=97).check(SESSION)
    Request([0], 10**9, top_logprobs=0).check(SESSION)

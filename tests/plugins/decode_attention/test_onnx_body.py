"""The ONNX body in onnxruntime, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import DECODE_ATTENTION
from tests.plugins.onnx_bodies import error, inputs, run, single_operator


@pytest.fixture(scope="module", params=["float32", "float16"])
def of_type(request: pytest.FixtureRequest):
    return request.param, single_operator(DECODE_ATTENTION, request.param)


@pytest.mark.parametrize(
    ("past", "correlation", "padded"),
    [(0, 0.9, False), (1, 0.9, True), (63, 1.0, True), (300, 0.99, False), (1030, 0.9, True)],
)
def test_decode_attention(of_type, past: int, correlation: float, padded: bool) -> None:
    dtype, session = of_type
    q, k, v, mask = inputs(past + 1, correlation, padded, dtype)
    y = precondition(k.double(), v.double(), mask=mask, implementation="reference").to(k.dtype)
    arguments = (q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], k[:, :, :-1], y[:, :, :-1])
    exact = decode_attention(*(x.double() for x in arguments), mask, implementation="reference")
    baseline = decode_attention(*arguments, mask, implementation="reference")
    named = dict(zip(("Q", "K_new", "V_new", "K", "Y"), arguments, strict=True))
    got = run(session, **named, mask=mask)
    for ours, plain, wanted in zip(got, baseline, exact, strict=True):
        assert error(ours, wanted) <= 4 * error(plain, wanted) + torch.finfo(k.dtype).eps


@pytest.mark.parametrize("past", [511, 1024, 1100])
def test_long_pasts(past: int) -> None:
    """Beyond the tiles of 512 and the blocks of 1,024 that other bodies go by."""
    q, k, v, mask = inputs(past + 1, 0.9, True, "float32")
    y = precondition(k.double(), v.double(), mask=mask, implementation="reference").to(k.dtype)
    arguments = (q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], k[:, :, :-1], y[:, :, :-1])
    exact = decode_attention(*(x.double() for x in arguments), mask, implementation="reference")
    baseline = decode_attention(*arguments, mask, implementation="reference")
    named = dict(zip(("Q", "K_new", "V_new", "K", "Y"), arguments, strict=True))
    got = run(single_operator(DECODE_ATTENTION), **named, mask=mask)
    for ours, plain, wanted in zip(got, baseline, exact, strict=True):
        assert error(ours, wanted) <= 4 * error(plain, wanted) + torch.finfo(k.dtype).eps

"""The ONNX body in onnxruntime, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.table import CAUSAL_ATTENTION
from tests.plugins.onnx_bodies import error, inputs, run, single_operator


@pytest.fixture(scope="module", params=["float32", "float16"])
def of_type(request: pytest.FixtureRequest):
    return request.param, single_operator(CAUSAL_ATTENTION, request.param)


# Query rows come in blocks of 256, and of fewer beyond 8192 tokens.
@pytest.mark.parametrize(
    ("n", "past", "padded"),
    [
        (1, 0, True),
        (1, 300, False),
        (63, 0, True),
        (256, 1, False),
        (257, 40, True),
        (600, 513, True),
        (260, 8900, False),
    ],
)
def test_causal_attention(of_type, n: int, past: int, padded: bool) -> None:
    dtype, session = of_type
    q, k, y, mask = inputs(past + n, 0.9, padded, dtype)
    arguments = (q[:, :, past:], k, y)
    exact = causal_attention(*(x.double() for x in arguments), mask)
    baseline = error(causal_attention(*arguments, mask), exact)
    (out,) = run(session, **dict(zip(("Q", "K", "Y"), arguments, strict=True)), mask=mask)
    assert error(out, exact) <= 4 * baseline + torch.finfo(k.dtype).eps


@pytest.mark.parametrize(("n", "past"), [(1100, 0), (600, 1000)])
def test_the_edges_of_tiles(n: int, past: int) -> None:
    """Several blocks of 256 rows, with values on both sides of the edges at 512 and 1,024 tokens."""
    q, k, y, mask = inputs(past + n, 0.9, True, "float32")
    arguments = (q[:, :, past:], k, y)
    exact = causal_attention(*(x.double() for x in arguments), mask)
    baseline = error(causal_attention(*arguments, mask), exact)
    (out,) = run(single_operator(CAUSAL_ATTENTION), **dict(zip(("Q", "K", "Y"), arguments, strict=True)), mask=mask)
    assert error(out, exact) <= 4 * baseline + torch.finfo(k.dtype).eps

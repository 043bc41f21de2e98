"""The ONNX body of a few new tokens in onnxruntime, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.decode_attention.onnx_body_several import LARGEST_BLOCK
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import DECODE_ATTENTION
from tests.plugins.onnx_bodies import error, inputs, run, single_operator


@pytest.fixture(scope="module", params=[("float32", False), ("float16", False), ("float32", True)])
def of_type(request: pytest.FixtureRequest):
    dtype, training = request.param
    return dtype, training, single_operator(DECODE_ATTENTION, dtype, training, several=True)


def plain_errors(arguments, options) -> list[float]:
    """Return the errors of O and Y of the plain implementation in this type: the largest of five with perturbed keys.

    With repeated keys all scores are rounded alike, and errors are smaller than rounding can make them.
    """
    q, k_new, v_new, k, y = arguments
    generator, found = torch.Generator().manual_seed(0), []
    for size in (0.0, *[2 * torch.finfo(k.dtype).eps] * 4):
        near, past = (x * (1 + size * torch.randn(x.shape, generator=generator)) for x in (k_new, k))
        given = (q, near.to(q.dtype), v_new, past.to(q.dtype), y)
        exact = decode_attention(*(x.double() for x in given), **options)
        found.append([error(*pair) for pair in zip(decode_attention(*given, **options), exact, strict=True)])
    return [max(errors) for errors in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("past", "n", "correlation", "padded"),
    [
        (0, 1, 0.9, False),
        (0, 8, 1.0, True),
        (1, 2, 0.9, True),
        (63, 16, 1.0, False),
        (1030, 8, 0.9, True),
        (40, LARGEST_BLOCK, 0.9, False),
    ],
)
def test_several_tokens(of_type, past: int, n: int, correlation: float, padded: bool) -> None:
    dtype, training, session = of_type
    q, k, v, mask = inputs(past + n, correlation, padded, dtype)
    k = k / 16 if training else k  # small keys, where training's diagonal is not 1
    options = {"mask": mask, "implementation": "reference", "training_diagonal": training}
    y = precondition(k.double(), v.double(), **options).to(k.dtype)
    arguments = (q[:, :, past:], k[:, :, past:], v[:, :, past:], k[:, :, :past], y[:, :, :past])
    exact = decode_attention(*(x.double() for x in arguments), **options)
    got = run(session, **dict(zip(("Q", "K_new", "V_new", "K", "Y"), arguments, strict=True)), mask=mask)
    baseline = plain_errors(arguments, options)
    for ours, plain, wanted in zip(got, baseline, exact, strict=True):
        assert error(ours, wanted) <= 4 * plain + torch.finfo(q.dtype).eps

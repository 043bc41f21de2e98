"""Norm, feed-forward layer and head, against transformers' own."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from lucid_deploy.model.parts import Head, precise_silu

HALF = (torch.float16, torch.bfloat16)


def test_the_smallest_results_of_silu_are_as_exact_as_others() -> None:
    x = torch.linspace(-79, 30, 4001, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(precise_silu(x), torch.nn.functional.silu(x), rtol=1e-14, atol=0)
    far = torch.tensor([-1e4, -100.0, 1e4], requires_grad=True)
    found = precise_silu(far)
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, 0.0, 1e4]), rtol=0, atol=1e-28)
    found.sum().backward()
    assert far.grad is not None and far.grad.isfinite().all()


def test_graphs_of_it_are_exact_in_onnxruntime_where_those_of_silu_are_not() -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return precise_silu(x), torch.nn.functional.silu(x)

    x = torch.linspace(-30, 30, 4001)
    program = torch.onnx.export(Both(), (x,), dynamo=True, verbose=False)
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    wanted = torch.nn.functional.silu(x.double()).numpy()
    precise, plain = (
        np.abs(y - wanted)[wanted != 0] / np.abs(wanted)[wanted != 0]
        for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})
    )
    assert precise.max() < 4 * 2.0**-23
    assert plain.max() > 1e-3  # else onnxruntime has mended its Sigmoid, and this function can go


@pytest.mark.parametrize("dtype", HALF)
def test_logits_of_a_half_precision_model_are_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, x = Head(48, 61).to(dtype), torch.randn(1, 3, 48).to(dtype)
    exact = x.double() @ head.weight.double().T
    logits = head(x)
    assert logits.dtype == torch.float32 and Head(48, 61).double()(x.double()).dtype == torch.float64
    torch.testing.assert_close(logits.double(), exact, rtol=1e-4, atol=1e-6)
    head.in_float32 = False  # as a quantized head's
    rounded = head(x)
    assert rounded.dtype == torch.float32 and torch.equal(rounded, rounded.to(dtype).float())

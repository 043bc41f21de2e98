"""Captured graphs compute what the module computes; captures of several threads and loggers stay apart."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from lucid_deploy.export.capture import capture

pytestmark = pytest.mark.slow


class Module(torch.nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def test_captures_of_two_threads_leave_warnings_and_loggers_as_they_were() -> None:
    """The second capture starts during the first, waits for it and ends after it."""
    others: list[threading.Thread] = []

    def captured(compute: Callable[[Tensor], Tensor]) -> None:
        capture(Module(compute).eval(), (torch.empty(2, 3, device="meta"),), (None,), ["x"], ["y"])

    def compute(x: Tensor) -> Tensor:
        if not others:
            others.append(threading.Thread(target=captured, args=(torch.neg,)))
            others[0].start()
            others[0].join(0.5)  # until it waits
            assert others[0].is_alive()
        return x + 1

    def state() -> tuple[object, ...]:
        return list(warnings.filters), *(logging.getLogger(name).level for name in LOUD)

    before = state()
    captured(compute)
    others[0].join()
    assert state() == before


LOUD = ("torch.onnx", "torch._dynamo.metrics_context")


def in_place(x: Tensor) -> Tensor:
    y = x + 1
    y[:, 0].mul_(3)
    return y


def in_place_and_behind_a_view(x: Tensor) -> Tensor:
    y = x.abs() + 1
    row = y[:, 0]
    y /= y.sum(-1, keepdim=True)  # the view sees it, too
    z = x + 1
    before = z * 2
    z /= 3
    return torch.cat([y + row[:, None], before + z])


MODULES = [
    in_place,
    in_place_and_behind_a_view,
    lambda x: x.flatten(1),
    lambda x: torch.special.xlog1py(x, x.abs()),
    lambda x: ((x > 0) & (x < 1)).float(),
    lambda x: x.reshape(x.shape[0], 2, 6).transpose(1, 2),
    lambda x: (x > 0) * x + (x > 0).sum(-1, keepdim=True) / 2,
    lambda x: torch.cat([x, x > 0]),
]


@pytest.mark.parametrize("compute", MODULES)
def test_graphs_compute_what_the_module_does(compute: Callable[[Tensor], Tensor]) -> None:
    import onnxruntime

    axes = ({0: torch.export.Dim.DYNAMIC},)
    model = capture(Module(compute).eval(), (torch.ones(2, 3, 4),), axes, ["x"], ["y"])
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    for rows in (3, 0):
        x = torch.randn(rows, 3, 4)
        (found,) = session.run(None, {"x": x.numpy()})
        assert found.shape == compute(x.clone()).shape
        np.testing.assert_allclose(found, compute(x.clone()).numpy(), rtol=1e-3)

"""Translations of ours lead to the nodes that PyTorch's decompositions lead to, for no elements as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from lucid_deploy.export.capture import capture

pytestmark = pytest.mark.slow
OTHER_NODES = {"Shape", "Squeeze", "Gather", "Constant", "Identity"}  # of sizes


class Module(torch.nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


CASES = {
    "to a type": (lambda x: x.to(torch.float16), ["Cast"]),
    "to a device": (lambda x: x.to("cpu", torch.float16), ["Cast"]),
    "to bool": (lambda x: x.to(torch.bool), ["Cast"]),
    "reshape": (lambda x: x.transpose(0, 1).reshape(4, x.shape[0], 3), ["Transpose", "Reshape", "Concat", "Reshape"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_nodes_and_what_they_compute(case: str) -> None:
    compute, wanted = CASES[case]
    axes = ({0: torch.export.Dim.DYNAMIC},)
    model = capture(Module(compute).eval(), (torch.ones(2, 3, 4),), axes, ["x"], ["y"])
    assert [node.op_type for node in model.graph if node.op_type not in OTHER_NODES] == wanted
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    for rows in (3, 0):
        x = torch.randn(rows, 3, 4)
        (found,) = evaluator.run(None, {"x": x.numpy()})
        np.testing.assert_array_equal(found, compute(x).numpy())

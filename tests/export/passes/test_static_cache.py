"""The placeholder of a write into a buffer becomes the standard operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from lucid_deploy.artifact import OPSET_TENSOR_SCATTER
from lucid_deploy.export.operators import OPSET
from lucid_deploy.export.passes.static_cache import write_rows
from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row
from lucid_deploy.plugins.table import DOMAIN, SCATTER_ROW
from tests.export.passes.graphs import FLOAT, INT64, model, operators, run

SHAPE = ["batch", 2, "room", 4]


def made() -> ir.Model:
    node = helper.make_node(SCATTER_ROW.name, ["cache", "row", "index"], ["present"], domain=DOMAIN)
    inputs = {"cache": (FLOAT, SHAPE), "row": (FLOAT, ["batch", 2, 1, 4]), "index": (INT64, ["batch"])}
    return model([node], inputs, {"present": (FLOAT, SHAPE)}, OPSET)


@pytest.mark.parametrize(
    ("opset", "wanted"),
    [
        (OPSET_TENSOR_SCATTER, ["TensorScatter"]),
        (OPSET, ["Shape", "Constant", "Unsqueeze", "Expand", "ScatterElements"]),
    ],
)
def test_rows_are_written_as_by_pytorchs_operator(opset: int, wanted: list[str]) -> None:
    found = made()
    write_rows(found, opset)
    assert operators(found) == wanted
    assert found.opset_imports[""] == opset
    rng = np.random.default_rng(0)
    cache, row = (rng.standard_normal((3, 2, size, 4)).astype(np.float32) for size in (6, 1))
    index = np.array([0, 5, 2])
    [present] = run(found, {"cache": cache, "row": row, "index": index})
    expected = scatter_row(*map(torch.from_numpy, (cache, row, index)))
    np.testing.assert_array_equal(present, expected.numpy())

"""Sessions with the library take its product in the place of MatMulNBits that rounds its inputs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lucid_deploy.plugins.table import DOMAIN, QUANTIZED_MATMUL, QUANTIZED_MATMUL_ZERO_POINTS
from lucid_deploy.runtimes.layers import NewTokens
from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
from lucid_deploy.runtimes.onnxruntime.quantized_matmul import use_quantized_matmul
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.options import RuntimeOptions
from tests.runtimes.onnxruntime.loaded_graphs import copied, operators
from tests.runtimes.onnxruntime.rows_alone import check_rows_decode_as_alone

HAS_DOTS = "lucid_deploy.plugins.hosts.onnxruntime.build.has_dots"
WEIGHTS = {
    "w": np.ones((5, 2, 16), np.uint8),
    "scales": np.ones((5, 2), np.float32),
    "long": np.ones((1, 1, 32768), np.uint8),
    "one": np.ones((1, 1), np.float32),
    "zeros": np.ones((5, 1), np.uint8),
    "float_zeros": np.ones((5, 2), np.float32),
    "flat": np.ones(10, np.float32),
    "doubles": np.ones((5, 2), np.float64),
    "order": np.ones(64, np.int32),
    "bias": np.ones(5, np.float32),
}
WHOLE_BLOCKS = {"head_dim": 32, "intermediate_size": 128}  # of a model: its weights end with a block of 32
PLAIN = {"K": 64, "N": 5, "bits": 4, "block_size": 32, "accuracy_level": 4}


def graph(inputs: list[str], domain: str = "com.microsoft", **changes: Any) -> onnx.ModelProto:
    """Return a graph of one product; a change that is None leaves the attribute out."""
    attributes = {name: value for name, value in {**PLAIN, **changes}.items() if value is not None}
    node = helper.make_node("MatMulNBits", ["x", *inputs], ["o"], domain=domain, **attributes)
    value = helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    made = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [3, 64])], [value("o", TensorProto.FLOAT, None)], weights
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(domain, 1)])


@pytest.mark.parametrize(
    ("inputs", "operator"),
    [
        (["w", "scales"], QUANTIZED_MATMUL),
        (["w", "scales", "", ""], QUANTIZED_MATMUL),
        (["w", "scales", "zeros"], QUANTIZED_MATMUL_ZERO_POINTS),
    ],
)
@pytest.mark.parametrize("bits", [4, None])  # None: the default, which is 4
def test_products_that_round_their_inputs_are_replaced(inputs: list[str], operator: Any, bits: int | None) -> None:
    model = graph(inputs, bits=bits)
    assert use_quantized_matmul(model)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, len(node.attribute)) == (operator.name, DOMAIN, 0)
    assert list(node.input) == ["x", *(name for name in inputs if name)]
    assert DOMAIN in [item.domain for item in model.opset_import]
    assert not use_quantized_matmul(model)


@pytest.mark.parametrize(
    ("inputs", "changes"),
    [
        (["w", "scales"], {"accuracy_level": 0}),
        (["w", "scales"], {"accuracy_level": None}),
        (["w", "scales"], {"accuracy_level": 1}),
        (["w", "scales"], {"bits": 2}),
        (["w", "scales"], {"bits": 8}),  # the weight has not so many
        (["w", "scales"], {"K": 60}),
        (["w", "scales"], {"N": 6}),
        (["w", "scales"], {"block_size": 8}),
        (["w", "scales"], {"domain": "somebody"}),
        (["w", "scales"], {"weight_prepacked": 1}),
        (["long", "one"], {"K": 65536, "N": 1, "block_size": 65536}),
        (["x", "scales"], {}),
        (["w", "x"], {}),
        (["w", "flat"], {}),
        (["w", "doubles"], {}),
        (["w", "scales", "float_zeros"], {}),
        (["w", "scales", "x"], {}),
        (["w", "scales", "", "order"], {}),
        (["w", "scales", "", "", "bias"], {}),
    ],
)
def test_others_stay(inputs: list[str], changes: dict[str, Any]) -> None:
    model = graph(inputs, **changes)
    before = model.SerializeToString()
    assert not use_quantized_matmul(model)
    assert model.SerializeToString() == before


def test_sessions_and_layers_load_graphs_so(
    quantized, built_library: Path, loaded: list[Counter[str]], monkeypatch
) -> None:
    """Whatever processor runs this: the library's product is there without instructions for it, only slower.

    Two of eight weights end within a block, which onnxruntime fills up: these stay.
    """
    artifact = quantized("int4")[1]

    def products() -> list[tuple[int, int]]:
        """Return how many products are onnxruntime's and how many the library's, for each graph loaded since."""
        found = [(each["MatMulNBits"], each[QUANTIZED_MATMUL.name]) for each in loaded]
        loaded.clear()
        return found

    monkeypatch.setattr(HAS_DOTS, lambda library: True)
    session = OrtSession(artifact, RuntimeOptions(kernels="library"))
    assert products() == [(2, 6), (2, 6)]  # prefill, decode
    session.prepare_several()
    assert products() == [(2, 6)]  # the graph that verifies drafts
    layers = OrtLayers(artifact, RuntimeOptions(kernels="library"))
    for decode in (False, True):
        layers.run(NewTokens.after(np.array([[5]])), layers.empty_past(), decode=decode)
        assert products() == [(2, 6)]
    OrtSession(artifact, RuntimeOptions(kernels="functions"))
    assert products() == [(8, 0), (8, 0)]
    monkeypatch.setattr(HAS_DOTS, lambda library: False)
    OrtSession(artifact, RuntimeOptions(kernels="library"))
    assert products() == [(8, 0), (8, 0)]


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_of_a_batch_decodes_as_it_does_alone(
    quantized, built_library: Path, scheme: str, dtype: str, monkeypatch
) -> None:
    """To the bit, with rows of one length: no product depends on how many rows there are."""
    monkeypatch.setattr(HAS_DOTS, lambda library: True)
    artifact = quantized(scheme, dtype=dtype, changes=WHOLE_BLOCKS)[1]
    model = copied(artifact)
    assert use_quantized_matmul(model) and not operators(model)["MatMulNBits"]  # onnxruntime's does as it likes
    check_rows_decode_as_alone(OrtSession(artifact, RuntimeOptions(kernels="library")), 5)

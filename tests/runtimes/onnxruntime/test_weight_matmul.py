"""The library's product in the place of MatMul by a weight: where it goes, and that sessions run it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from transformers import AutoModelForCausalLM

from lucid_deploy.plugins.table import (
    WEIGHT_MATMUL,
    WEIGHT_MATMUL_FLOAT16,
)
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.runtimes.layers import NewTokens
from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.onnxruntime.weight_matmul import use_weight_matmul
from tests.runtimes.onnxruntime.loaded_graphs import copied, operators
from tests.runtimes.onnxruntime.rows_alone import check_rows_decode_as_alone


def graph(
    *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("o",), depth: int = 4, **weights: np.ndarray
) -> onnx.ModelProto:
    """Return a graph of ``x`` (3, depth) in float32, with weights."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [3, depth])],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)])


W = np.ones((4, 4), dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_products_of_a_decode_graph_by_weights_are_replaced(exported, dtype: str) -> None:
    artifact = exported(dtype=dtype)[1]
    model = copied(artifact, "decode")
    before = operators(model)
    assert use_weight_matmul(model)
    after = operators(model)
    # The head's weight is stored in the model's type and cast: its logits are float32.
    assert after[WEIGHT_MATMUL_FLOAT16.name] == (1 if dtype == "float16" else 0)
    assert after[WEIGHT_MATMUL.name] + after[WEIGHT_MATMUL_FLOAT16.name] == before["MatMul"] == 15
    assert after["MatMul"] == 0 and after["Cast"] == before["Cast"] - after[WEIGHT_MATMUL_FLOAT16.name]


def test_products_of_two_results_and_by_other_shapes_stay() -> None:
    three = np.ones((2, 4, 4), dtype=np.float32)
    model = graph(
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["a"]),
        helper.make_node("MatMul", ["w", "t"], ["b"]),
        helper.make_node("MatMul", ["x", "three"], ["c"]),
        helper.make_node("MatMul", ["x", "w"], ["d"], domain="somebody"),
        outputs=("a", "b", "c", "d"),
        w=W,
        three=three,
    )
    before = model.SerializeToString()
    assert not use_weight_matmul(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("depth", "columns"), [(4, 70), (900, 301)])  # the second weight's sums have four parts
def test_onnx_itself_agrees(built_library: Path, operator: str, dtype: type, depth: int, columns: int) -> None:
    """Whatever takes a product's place gives what onnx's own evaluator gives for the product."""
    rng = np.random.default_rng(0)
    w = (1 + rng.standard_normal((depth, columns) if operator == "MatMul" else (columns, depth))).astype(dtype)
    options = {"transB": 1, "beta": 0.5} if operator == "Gemm" else {}  # without a C, beta does not matter
    cast = dtype == np.float16
    nodes = [helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT)] if cast else []
    nodes.append(helper.make_node(operator, ["x", "wide" if cast else "w"], ["o"], **options))
    model, x = graph(*nodes, depth=depth, w=w), (1 + rng.standard_normal((3, depth))).astype(np.float32)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert use_weight_matmul(model)
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(str(built_library))
    (got,) = onnxruntime.InferenceSession(model.SerializeToString(), settings).run(None, {"x": x})
    # As many products as the depth, and their sums, in each of the two, in any order.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2 * depth * np.finfo(np.float32).eps * np.abs(wanted).max())


def test_what_decodes_multiplies_so_and_prefill_does_not(
    exported, built_library: Path, loaded: list[Counter[str]]
) -> None:
    artifact = exported()[1]

    def products() -> list[tuple[int, int]]:
        """Return how many products are onnxruntime's and how many the library's, for each graph loaded since."""
        found = [(each["MatMul"], each[WEIGHT_MATMUL.name]) for each in loaded]
        loaded.clear()
        return found

    session = OrtSession(artifact, RuntimeOptions(kernels="library"))
    assert products() == [(15, 0), (0, 15)]  # prefill, decode
    session.prepare_several()
    assert products() == [(0, 15)]  # the graph that verifies drafts
    layers = OrtLayers(artifact, RuntimeOptions(kernels="library"))
    for decode, wanted in ((False, (15, 0)), (True, (0, 15))):
        layers.run(NewTokens.after(np.array([[5]])), layers.empty_past(), decode=decode)
        assert products() == [wanted]
    OrtSession(artifact, RuntimeOptions(kernels="functions"))
    assert products() == [(15, 0), (15, 0)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [2, 9])
def test_a_row_of_a_batch_decodes_as_it_does_alone(exported, built_library: Path, dtype: str, batch: int) -> None:
    """To the bit, with rows of one length: no product depends on how many rows there are."""
    artifact = exported(dtype=dtype)[1]
    check_rows_decode_as_alone(OrtSession(artifact, RuntimeOptions(kernels="library")), batch)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_tied_model_decodes_as_transformers_own(exported, built_library: Path, dtype: str) -> None:
    """Standard attention, token by token: what multiplies is all that is the library's and not onnxruntime's."""
    checkpoint, artifact = exported(dtype=dtype, attention_type="llama", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.from_numpy(np.random.default_rng(1).integers(2, 97, (2, 12)))
    with torch.no_grad():
        exact = model(ids).logits.numpy()
        plain = model.to(getattr(torch, dtype))(ids).logits.double().numpy()
    session = OrtSession(artifact, RuntimeOptions(kernels="library"))
    cache = session.empty_cache(2)
    found = np.stack([session.decode(ids[:, at : at + 1].numpy(), cache)[:, -1] for at in range(12)], axis=1)
    error, gate = (np.linalg.norm(each - exact) / np.linalg.norm(exact) for each in (found, plain))
    assert error < 3 * gate

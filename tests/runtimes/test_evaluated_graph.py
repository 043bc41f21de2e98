"""A graph in ONNX's evaluator, with our operators computed by what is given, or by the functions of the model."""

from __future__ import annotations

import numpy as np

from lucid_deploy.conformance.cases import make_case
from lucid_deploy.plugins.table import DECODE_ATTENTION
from lucid_deploy.runtimes.evaluated_graph import evaluated_graph

CASE = make_case("decode_attention_past")


def test_what_is_given_computes_an_operator() -> None:
    seen = []

    def compute(*inputs: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        seen.append((len(inputs), epsilon))
        return 2 * inputs[0], 3 * inputs[2]

    found = evaluated_graph(CASE.model, {DECODE_ATTENTION.name: compute})(CASE.inputs)
    assert seen == [(6, np.float32(1e-5))]
    np.testing.assert_array_equal(found["O"], 2 * CASE.inputs["Q"])
    np.testing.assert_array_equal(found["Y_new"], 3 * CASE.inputs["V_new"])


def test_else_the_function_of_the_model_does() -> None:
    found = evaluated_graph(CASE.model, {})(CASE.inputs)
    for name, wanted in CASE.outputs.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)

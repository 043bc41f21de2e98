"""The tiny model's graphs compute its formulas, which were written apart."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from lucid_deploy.conformance.compare import relative_error
from lucid_deploy.conformance.model_problems import EXACT, MODEL_PROBLEMS, ModelProblem, model_inputs
from lucid_deploy.conformance.tiny_graph import STAGES, tiny_graph
from lucid_deploy.conformance.tiny_model import run_model

SINGLE = [each for each in MODEL_PROBLEMS if each.dtype == "float32"]


def test_every_stage_is_compared() -> None:
    assert {each.stage for each in SINGLE} == set(STAGES)


@pytest.mark.parametrize("problem", SINGLE, ids=lambda each: each.name)
def test_a_graph_gives_what_the_formulas_give(problem: ModelProblem) -> None:
    weights = problem.model.weights()
    inputs = model_inputs(problem, weights)
    model = tiny_graph(problem.model, weights, problem.stage, "float32")
    session = ort.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    wanted = run_model(problem.model, weights, inputs, EXACT)
    assert names == list(wanted)
    for name, found in zip(names, session.run(names, inputs), strict=True):
        assert relative_error(np.asarray(found), wanted[name]) < 1e-5, name

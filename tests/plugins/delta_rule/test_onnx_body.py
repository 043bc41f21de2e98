"""The ONNX bodies in onnxruntime and ONNX's evaluator, against the float64 recurrence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from tests.plugins.delta_rule.graphs import feed, one_node, run, session
from tests.plugins.delta_rule.oracles import FACTOR, errors_by_chunks, finite
from tests.plugins.delta_rule.problems import Inputs, doubled, in_type, inputs
from tests.plugins.problems import relative

SCALE = 0.25
EPS = torch.finfo(torch.float32).eps
Run = Callable[[Inputs], tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def of_chunks() -> Run:
    made = session(one_node(scale=SCALE))
    return lambda given: run(made, given)


@pytest.fixture(scope="module")
def of_one_token() -> Run:
    made = session(one_node(scale=SCALE, one_token=True))
    return lambda given: run(made, given)


@pytest.mark.parametrize(
    ("tokens", "correlation", "beta", "decay"),
    [
        (1, 0.9, "open", "slow"),
        (63, 1.0, "two", "none"),
        (64, 0.9, "one", "fast"),
        (65, 1.0, "two", "slow"),
        (129, 0.9, "open", "reset"),
        (130, 0.9, "small", "gone"),
        (1030, 0.9, "open", "slow"),
    ],
)
def test_chunks(of_chunks: Run, tokens: int, correlation: float, beta: str, decay: str) -> None:
    given = in_type(inputs(tokens, correlation, beta, decay), torch.float32)
    exact = delta_rule(*doubled(given), SCALE, "reference")
    for ours, theirs, wanted in zip(of_chunks(given), errors_by_chunks(finite(given), SCALE), exact, strict=True):
        assert relative(ours, wanted) <= FACTOR * max(theirs, EPS / 2)


@pytest.mark.parametrize(("beta", "decay"), [("open", "slow"), ("two", "reset"), ("one", "none")])
def test_one_token(of_one_token: Run, beta: str, decay: str) -> None:
    given = in_type(inputs(1, 0.9, beta, decay), torch.float32)
    exact = delta_rule(*doubled(given), SCALE, "reference")
    for ours, wanted in zip(of_one_token(given), exact, strict=True):
        assert relative(ours, wanted) <= 2 * EPS


def test_token_by_token_matches_one_call(of_chunks: Run, of_one_token: Run) -> None:
    given = in_type(inputs(70, decay="fast"), torch.float32)
    output, state = of_chunks(given)
    held, rows = given[5], []
    for t in range(70):
        row, held = of_one_token((*(each[:, :, t : t + 1] for each in given[:5]), held))  # type: ignore[arg-type]
        rows.append(row)
    assert relative(torch.cat(rows, dim=2), output) < 16 * EPS and relative(held, state) < 16 * EPS


@pytest.mark.parametrize("one_token", [False, True])
def test_float16(one_token: bool) -> None:
    given = in_type(inputs(1 if one_token else 100, decay="fast"), torch.float16)
    output, state = run(session(one_node("float16", SCALE, one_token)), given)
    exact = delta_rule(*doubled(given), SCALE, "reference")
    assert (output.dtype, state.dtype) == (torch.float16, torch.float32)
    assert relative(output, exact[0]) < torch.finfo(torch.float16).eps / 2
    assert relative(state, exact[1]) < 16 * EPS


@pytest.mark.parametrize("tokens", [64, 130])
def test_onnx_reference_evaluator(tokens: int) -> None:
    """It stacks the rows of a loop otherwise than the standard says; the body gives it no occasion to."""
    given = in_type(inputs(tokens), torch.float32)
    found = ReferenceEvaluator(one_node(scale=SCALE)).run(None, feed(given))
    for ours, wanted in zip(found, delta_rule(*doubled(given), SCALE, "reference"), strict=True):
        assert relative(torch.from_numpy(ours), wanted) < 16 * EPS


def operators(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from operators(attribute.g.node)

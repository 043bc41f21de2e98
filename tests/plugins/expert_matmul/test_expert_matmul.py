"""The product of each row with its expert's matrix: in PyTorch, and by the ONNX body, which reads no idle expert."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.expert_matmul.reference import dequantized_experts
from lucid_deploy.plugins.expert_matmul.torch_operator import expert_matmul
from lucid_deploy.plugins.table import DOMAIN, EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL, VERSION, Operator
from tests.plugins.problems import keys, relative

EXPERTS, COLUMNS, DEPTH = 6, 5, 7
# Experts that nobody chose, one row alone, every row the same, and no row.
CHOICES = ([0, 5, 5, 2, 0, 0, 2, 5, 5], [3], [4, 4, 4], [5, 4, 3, 2, 1, 0], [])


def problem(choices: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that correlate, their experts, and the experts' matrices."""
    return keys(0.9, len(choices), DEPTH), torch.tensor(choices, dtype=torch.int64), keys(0.5, EXPERTS, COLUMNS, DEPTH)


def exact(x: torch.Tensor, expert: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("rnk,rk->rn", weight[expert], x)


def graph(element: int, operator: Operator = EXPERT_MATMUL) -> onnx.ModelProto:
    kinds = {"int64": TensorProto.INT64, "uint8": TensorProto.UINT8, "T": element}
    infos = [
        [
            helper.make_tensor_value_info(
                item.name, kinds[item.type], [f"{item.name}{i}" for i in range(item.shape.count(",") + 1)]
            )
            for item in items
        ]
        for items in (operator.inputs, operator.outputs)
    ]
    node = helper.make_node(operator.name, operator.input_names, operator.output_names, domain=DOMAIN)
    return helper.make_model(
        helper.make_graph([node], "experts", *infos),
        functions=[function_proto(operator.name)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )


@pytest.mark.parametrize("choices", CHOICES, ids=len)
def test_the_operator_and_the_body_compute_the_product(choices: list[int]) -> None:
    x, expert, weight = problem(choices)
    wanted = exact(x, expert, weight)
    torch.testing.assert_close(expert_matmul(x, expert, weight), wanted, rtol=1e-13, atol=1e-13)
    feed = {"X": x.float().numpy(), "expert": expert.numpy(), "W": weight.float().numpy()}
    model = graph(TensorProto.FLOAT)
    onnx.checker.check_model(model, full_check=True)
    for run in (ort.InferenceSession(model.SerializeToString()).run, ReferenceEvaluator(model).run):
        found = run(None, feed)[0]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_the_body_computes_in_the_models_type() -> None:
    x, expert, weight = (each.half() if each.is_floating_point() else each for each in problem(CHOICES[0]))
    session = ort.InferenceSession(graph(TensorProto.FLOAT16).SerializeToString())
    (found,) = session.run(None, {"X": x.numpy(), "expert": expert.numpy(), "W": weight.numpy()})
    assert found.dtype == np.float16
    assert relative(torch.from_numpy(found), exact(x.double(), expert, weight.double())) <= 2e-3


def test_experts_that_nobody_chose_are_not_read() -> None:
    x, expert, weight = problem(CHOICES[0])
    for idle in {*range(EXPERTS)} - {*CHOICES[0]}:
        weight[idle] = torch.nan
    assert expert_matmul(x, expert, weight).isfinite().all()
    feed = {"X": x.float().numpy(), "expert": expert.numpy(), "W": weight.float().numpy()}
    session = ort.InferenceSession(graph(TensorProto.FLOAT).SerializeToString())
    assert np.isfinite(session.run(None, feed)[0]).all()


def test_the_operator_is_differentiable_and_refuses_shapes_that_do_not_fit() -> None:
    x, expert, weight = problem(CHOICES[0])
    weight.requires_grad_(True)
    expert_matmul(x, expert, weight).sum().backward()
    assert weight.grad is not None and set(weight.grad.abs().sum((1, 2)).nonzero()[:, 0].tolist()) == {*CHOICES[0]}
    with pytest.raises(ValueError, match="do not fit together"):
        expert_matmul(x, expert, weight[:, :, 1:])


@pytest.mark.parametrize("choices", CHOICES, ids=len)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_body_dequantizes_the_experts_that_were_chosen(choices: list[int], bits: int) -> None:
    x, expert, depth, block = keys(0.9, len(choices), 96), torch.tensor(choices, dtype=torch.int64), 96, 32
    draw = torch.Generator().manual_seed(bits)
    packed = torch.randint(256, (EXPERTS, COLUMNS, depth // block, block * bits // 8), generator=draw).byte()
    scales = torch.rand(EXPERTS, COLUMNS, depth // block, generator=draw) / 64 - 0.01
    wanted = exact(x.double(), expert, dequantized_experts(packed, scales.double(), depth))
    scales[[each for each in range(EXPERTS) if each not in choices]] = torch.nan
    feed = {"X": x.float().numpy(), "expert": expert.numpy(), "W": packed.numpy(), "scales": scales.numpy()}
    model = graph(TensorProto.FLOAT, QUANTIZED_EXPERT_MATMUL)
    onnx.checker.check_model(model, full_check=True)
    for run in (ort.InferenceSession(model.SerializeToString()).run, ReferenceEvaluator(model).run):
        found = run(None, feed)[0]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5)

"""Inputs of linear layers are rounded to 8 bits as onnxruntime's operator rounds them."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.runtimes.torch.quantized_activations import quantize_activations, round_to_int8
from tests.model.config_samples import LUCID, parse

WIDTH, BLOCK = 64, 32


def rows() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(7, WIDTH) * torch.logspace(-6, 6, 7)[:, None]


def by_onnxruntime(x: np.ndarray) -> np.ndarray:
    """Multiply by the identity matrix, which 4 bits hold exactly: the result is the rounded input."""
    numbers = np.eye(WIDTH, dtype=np.uint8) + 8  # 8 stands for 0
    packed = (numbers[:, ::2] | (numbers[:, 1::2] << 4)).reshape(WIDTH, WIDTH // BLOCK, BLOCK // 2)
    parts = {"w": packed, "s": np.ones((WIDTH, WIDTH // BLOCK), np.float32)}
    attributes = {"K": WIDTH, "N": WIDTH, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, WIDTH]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(array, name) for name, array in parts.items()]
    graph = helper.make_graph([node], "graph", info[:1], info[1:], initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_rows_are_rounded_as_onnxruntime_does() -> None:
    x = rows()
    step = x.unflatten(-1, (-1, BLOCK)).abs().amax(-1).repeat_interleave(BLOCK, -1) / 127
    away = (round_to_int8(x, BLOCK) - torch.from_numpy(by_onnxruntime(x.numpy()))).abs()
    assert (away <= 0.02 * step).all(), "another code is a whole step away; sums round a little"


@pytest.mark.parametrize("block", [16, 48, 64, 128])
def test_no_number_moves_by_more_than_half_a_step_of_its_block(block: int) -> None:
    x = rows()
    got = round_to_int8(x, block)
    assert not torch.equal(got, x)
    for start in range(0, WIDTH, block):
        part = slice(start, start + block)
        step = x[:, part].abs().amax(-1, keepdim=True) / 127
        assert ((got - x)[:, part].abs() <= 0.5001 * step).all()
    torch.testing.assert_close(round_to_int8(got, block), got, rtol=1e-6, atol=0)


def test_only_the_layers_that_are_named_round_their_inputs() -> None:
    model = quantize_activations(LucidForCausalLM(parse(LUCID)), {"model.layers.1.mlp.up_proj.weight": 16})
    layer, x = model.layers()[1].mlp, torch.randn(1, 2, 48)
    weight = layer.up_proj.weight
    torch.testing.assert_close(layer.up_proj(x), round_to_int8(x, 16) @ weight.T)
    assert torch.equal(layer.gate_proj(x), torch.nn.functional.linear(x, layer.gate_proj.weight))
    assert not torch.allclose(layer.up_proj(x), x @ weight.T, rtol=1e-4)

"""The recurrence against transformers' and ONNX's, and its properties."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from tests.plugins.delta_rule.oracles import token_by_token
from tests.plugins.delta_rule.problems import DECAYS, Inputs, in_type, inputs
from tests.plugins.problems import relative


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("tokens", "beta"), [(1, "two"), (40, "open")])
def test_matches_transformers_recurrence(tokens: int, beta: str, decay: str) -> None:
    """Theirs is float32, and so is the reference on float32 tensors: they differ in the order of sums."""
    given = in_type(inputs(tokens, 0.9, beta, decay), torch.float32)
    for ours, theirs in zip(delta_rule(*given, 0.3, "reference"), token_by_token(given, 0.3), strict=True):
        assert relative(ours, theirs) < 16 * torch.finfo(torch.float32).eps


def test_with_beta_1_the_state_predicts_the_value() -> None:
    """S_tᵀ k_t = v_t, whatever the state was."""
    _, key, value, log_decay, beta, state = inputs(9, 0.9, decay="fast")
    output, _ = delta_rule(key, key, value, log_decay, torch.ones_like(beta), state, 1.0, "reference")
    torch.testing.assert_close(output, value, rtol=1e-12, atol=1e-12)


def test_decay_to_zero_leaves_only_the_last_token() -> None:
    query, key, value, log_decay, beta, state = inputs(9)
    log_decay[:, :, -1] = -torch.inf
    _, found = delta_rule(query, key, value, log_decay, beta, state, 1.0, "reference")
    last = beta[:, :, -1, None, None] * key[:, :, -1, :, None] * value[:, :, -1, None]
    torch.testing.assert_close(found, last, rtol=1e-12, atol=1e-12)


def onnxs_operator(given: Inputs, rule: str, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the standard LinearAttention of opset 27 computes, in ONNX's own evaluator."""
    query, key, value, log_decay, beta, state = given
    batch, heads, tokens, _ = key.shape
    packed = {
        name: each.transpose(1, 2).reshape(batch, tokens, -1)
        for name, each in (("query", query), ("key", key), ("value", value), ("decay", log_decay), ("beta", beta))
    }
    feed = {**packed, "past_state": state}
    names = ["query", "key", "value", "past_state", "decay" if rule == "gated_delta" else "", "beta"]
    numbers = {"q_num_heads": heads, "kv_num_heads": heads, "scale": scale}
    node = helper.make_node("LinearAttention", names, ["output", "present_state"], update_rule=rule, **numbers)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "rule", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)], ir_version=12)
    output, new_state = ReferenceEvaluator(model).run(None, {info.name: feed[info.name].numpy() for info in infos})
    by_token = torch.from_numpy(output).reshape(batch, tokens, heads, -1)
    return by_token.transpose(1, 2), torch.from_numpy(new_state)


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 27, reason="needs an onnx with opset 27")
@pytest.mark.parametrize(("rule", "decay"), [("delta", "none"), ("gated_delta", "fast"), ("gated_delta", "reset")])
@pytest.mark.parametrize(("tokens", "beta"), [(1, "two"), (40, "open")])
def test_matches_onnx_linear_attention(tokens: int, beta: str, rule: str, decay: str) -> None:
    given = in_type(inputs(tokens, 0.9, beta, decay), torch.float32)
    for ours, theirs in zip(delta_rule(*given, 0.3, "reference"), onnxs_operator(given, rule, 0.3), strict=True):
        assert relative(ours, theirs) < 16 * torch.finfo(torch.float32).eps

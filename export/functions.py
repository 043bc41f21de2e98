"""Bodies of the ``ai.lucid`` operators in standard ONNX operators, for runtimes that have no kernels for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.causal_attention.onnx_body import CausalAttention
from lucid_deploy.plugins.decode_attention.onnx_body import DecodeAttention
from lucid_deploy.plugins.decode_attention.onnx_body_several import DecodeAttentionSeveral
from lucid_deploy.plugins.delta_rule.onnx_body import DeltaRule, DeltaRuleOneToken
from lucid_deploy.plugins.expert_matmul.onnx_body import ExpertMatMul, QuantizedExpertMatMul
from lucid_deploy.plugins.precondition.onnx_body import Precondition
from lucid_deploy.plugins.shared.onnx_rows import DividedRows, with_divided_rows

# Where bodies divide by the training diagonal. Precondition divides V's rows and L's rows and columns by its square
# root: L becomes tril(exp(−|K̂_i − K̂_j|²/(2√d))), with 1 on the diagonal. Decoding divides rows by the whole diagonal.
DIVIDED = {
    Precondition.name: DividedRows("K", 0.5, {"v_pad": 0, "t_pad": 0}, {"batch_one": "batch_heads"}),
    DecodeAttention.name: DividedRows("K_new", 1.0, {"joined": 1, "y_new": 0}),
    DecodeAttentionSeveral.name: DividedRows("K_new", 1.0, {"weights": 0, "within": 0, "rhs": 0}),
}
FUNCTIONS = {
    body.name: body
    for body in (Precondition, CausalAttention, DecodeAttention, DeltaRule, ExpertMatMul, QuantizedExpertMatMul)
}
OF_ONE_TOKEN = {DeltaRule.name: DeltaRuleOneToken}  # without a loop, for graphs whose nodes get one new token
OF_SEVERAL_TOKENS = {DecodeAttention.name: DecodeAttentionSeveral}  # for graphs that verify drafts


def function_proto(
    name: str, opset: int = OPSET, training_diagonal: bool = False, one_token: bool = False, several: bool = False
) -> onnx.FunctionProto:
    """Return an operator's body for a graph's file.

    Args:
        name: The operator.
        opset: The graph's opset: a runtime inlines only functions of the same opset.
        training_diagonal: Whether the graph's nodes have the attribute ``diagonal``: all have it, or none.
        one_token: Whether all nodes get one new token; use the body for one token if there is one.
        several: Whether nodes may get several new tokens; use the body for several if there is one.
    """
    body = FUNCTIONS[name]
    body = OF_ONE_TOKEN.get(name, body) if one_token else body
    body = OF_SEVERAL_TOKENS.get(name, body) if several else body
    function = body.to_function_proto()
    function.name = name
    if training_diagonal and body.name in DIVIDED:
        function = with_divided_rows(function, DIVIDED[body.name])
    for item in function.opset_import:
        if item.domain == "":
            item.version = opset
    _state_loop_conditions(function.node)
    return function


def _state_loop_conditions(nodes: Any) -> None:
    """Add the condition ``true`` to every loop without one, in subgraphs too.

    The standard makes the condition optional, but ONNX's ReferenceEvaluator runs a loop without one zero times.
    """
    stated = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _state_loop_conditions(attribute.g.node)
        if node.op_type == "Loop" and not node.input[1]:
            node.input[1] = f"{node.output[0]}_goes_on"
            true = onnx.numpy_helper.from_array(np.array(True))
            stated.append(onnx.helper.make_node("Constant", [], [node.input[1]], value=true))
        stated.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del nodes[:]
    nodes.extend(stated)

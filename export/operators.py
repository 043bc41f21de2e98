"""Schemas of the operators of the ONNX domain ``ai.lucid``, and the translation of our PyTorch operators to them.

Names, inputs and outputs are those of ``lucid_deploy.plugins.table``. The bodies, in standard operators, are in
``plugins/*/onnx_body.py``; they are attached to the finished model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import onnx
from onnx.defs import OpSchema
from onnxscript import values

from lucid_deploy.plugins.table import (
    CAUSAL_ATTENTION,
    DECODE_ATTENTION,
    DELTA_RULE,
    DIAGONAL,
    DOMAIN,
    EXPERT_MATMUL,
    PRECONDITION,
    SCATTER_ROW,
    VERSION,
    Attribute,
    Operator,
    Tensor,
)

OPSET = 23  # of the standard operators: the first with Attention and RMSNormalization


_ONNX_TYPES = {"float32": "float"}  # where ONNX has another name for a type


def _onnx_type(kind: str) -> str:
    return kind if kind == "T" else f"tensor({_ONNX_TYPES.get(kind, kind)})"


def schema(operator: Operator) -> OpSchema:
    """Return an operator's ONNX schema."""

    def parameters(tensors: tuple[Tensor, ...]) -> list[OpSchema.FormalParameter]:
        return [
            OpSchema.FormalParameter(each.name, _onnx_type(each.type), description=f"{each.text} {each.shape}")
            for each in tensors
        ]

    return OpSchema(
        operator.name,
        DOMAIN,
        VERSION,
        doc=operator.text,
        inputs=parameters(operator.inputs),
        outputs=parameters(operator.outputs),
        type_constraints=[("T", list(map(_onnx_type, operator.types)), "the model's type")],
        attributes=[_attribute(each) for each in operator.attributes],
    )


def _attribute(attribute: Attribute) -> OpSchema.Attribute:
    if attribute.default is None:
        return OpSchema.Attribute(attribute.name, OpSchema.AttrType.FLOAT, attribute.text)
    default = onnx.helper.make_attribute(attribute.name, attribute.default)
    return OpSchema.Attribute(attribute.name, default, attribute.text)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translations of our PyTorch operators to nodes of the domain, for PyTorch's exporter to register."""
    causal_attention, delta_rule, scatter_row, expert_matmul = map(
        _node_maker, (CAUSAL_ATTENTION, DELTA_RULE, SCATTER_ROW, EXPERT_MATMUL)
    )
    precondition, decode_attention = map(_solver, (PRECONDITION, DECODE_ATTENTION))

    # The exporter reads these signatures. ``implementation`` chooses a PyTorch kernel, so nodes do not have it.
    def translate_precondition(  # type: ignore[no-untyped-def]
        k, v, k_past, y_past, mask, eps: float, implementation: str, training_diagonal: bool = False
    ):
        return precondition(training_diagonal)(k, v, k_past, y_past, mask, epsilon=eps)

    def translate_causal_attention(q, k, y, mask):  # type: ignore[no-untyped-def]
        return causal_attention(q, k, y, mask)

    def translate_decode_attention(  # type: ignore[no-untyped-def]
        q, k_new, v_new, k, y, mask, eps: float, implementation: str, training_diagonal: bool = False
    ):
        return decode_attention(training_diagonal)(q, k_new, v_new, k, y, mask, epsilon=eps)

    def translate_delta_rule(  # type: ignore[no-untyped-def]
        query, key, value, log_decay, beta, state, scale: float, implementation: str
    ):
        return delta_rule(query, key, value, log_decay, beta, state, scale=scale)

    def translate_scatter_row(cache, row, index):  # type: ignore[no-untyped-def]
        return scatter_row(cache, row, index)

    def translate_expert_matmul(x, expert, w):  # type: ignore[no-untyped-def]
        return expert_matmul(x, expert, w)

    return {
        _torch_operator(SCATTER_ROW): translate_scatter_row,
        _torch_operator(PRECONDITION): translate_precondition,
        _torch_operator(CAUSAL_ATTENTION): translate_causal_attention,
        _torch_operator(DECODE_ATTENTION): translate_decode_attention,
        _torch_operator(DELTA_RULE): translate_delta_rule,
        _torch_operator(EXPERT_MATMUL): translate_expert_matmul,
    }


def _solver(operator: Operator) -> Callable[[bool], Callable[..., Any]]:
    """Return a function of a bool, whether nodes use the training diagonal; it returns the function that makes them.

    With a diagonal of ones, nodes get no attribute ``diagonal``: the tracer would write its default into all of them.
    """
    unit = dataclasses.replace(operator, attributes=operator.required)
    makers = _node_maker(unit), functools.partial(_node_maker(operator), **{DIAGONAL.name: 1.0})
    return lambda training: makers[training]


def _node_maker(operator: Operator) -> values.Op:
    return values.Op(values.Opset(DOMAIN, VERSION), operator.name, schema(operator))


def _torch_operator(operator: Operator) -> Callable[..., Any]:
    import torch

    # These imports register our operators with PyTorch.
    import lucid_deploy.plugins.causal_attention.torch_operator
    import lucid_deploy.plugins.decode_attention.torch_operator
    import lucid_deploy.plugins.delta_rule.torch_operator
    import lucid_deploy.plugins.expert_matmul.torch_operator
    import lucid_deploy.plugins.precondition.torch_operator
    import lucid_deploy.plugins.scatter_row.torch_operator  # noqa: F401

    namespace, name = operator.torch_name.split("::")
    found: Callable[..., Any] = getattr(getattr(torch.ops, namespace), name).default
    return found

"""The operators of the ONNX domain ``ai.lucid``: schemas, and how the tracer's custom operators become their nodes.

The bodies, in standard operators, are in :mod:`lucid_deploy.export.functions`; they are attached to the finished model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx.defs import OpSchema
from onnxscript import values

DOMAIN = "ai.lucid"
VERSION = 1
OPSET = 23  # of the standard operators: the first with Attention and RMSNormalization
OPSET_STATIC = 24  # of graphs that write into a cache in place: the first with TensorScatter

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def _schema(name: str, doc: str, inputs: dict[str, str], outputs: dict[str, str], attributes: list[Any]) -> OpSchema:
    def parameters(named: dict[str, str]) -> list[OpSchema.FormalParameter]:
        return [
            OpSchema.FormalParameter(key, "tensor(bool)" if key == "mask" else "T", description=text)
            for key, text in named.items()
        ]

    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc=doc,
        inputs=parameters(inputs),
        outputs=parameters(outputs),
        type_constraints=[("T", _FLOATS, "the model's type")],
        attributes=attributes,
    )


_EPSILON = OpSchema.Attribute("epsilon", OpSchema.AttrType.FLOAT, "added to the mean square of a key before the root")

PRECONDITION = _schema(
    "Precondition",
    "Solve L Y = V for new tokens, given the cache of those before; L = tril(exp(K̂K̂ᵀ/√d − √d)), unit diagonal.",
    {
        "K": "raw keys of the new tokens [batch, kv_heads, sequence, head_dim]",
        "V": "their values, same shape",
        "K_past": "raw keys of the cache [batch, kv_heads, past_sequence, head_dim], past_sequence ≥ 0",
        "Y_past": "preconditioned values of the cache, same shape",
        "mask": "[batch, past_sequence + sequence], false at padding",
    },
    {"Y": "preconditioned values of the new tokens [batch, kv_heads, sequence, head_dim]"},
    [_EPSILON],
)
CAUSAL_ATTENTION = _schema(
    "CausalAttention",
    "Softmax attention of the last tokens over all tokens before them and themselves.",
    {
        "Q": "queries of the new tokens [batch, heads, sequence, head_dim]",
        "K": "raw keys of all tokens [batch, kv_heads, total_sequence, head_dim]",
        "Y": "their (preconditioned) values, same shape",
        "mask": "[batch, total_sequence], false at padding; a token always sees itself",
    },
    {"O": "[batch, heads, sequence, head_dim]"},
    [],
)
DECODE_ATTENTION = _schema(
    "DecodeAttention",
    "Softmax attention of one new token, and its own preconditioned value, in one pass over the cache.",
    {
        "Q": "queries of the new token [batch, heads, 1, head_dim]",
        "K_new": "its raw key [batch, kv_heads, 1, head_dim]",
        "V_new": "its value, same shape",
        "K": "raw keys of the cache [batch, kv_heads, past_sequence, head_dim]",
        "Y": "preconditioned values of the cache, same shape",
        "mask": "[batch, past_sequence + 1], false at padding; the last column is the new token",
    },
    {"O": "[batch, heads, 1, head_dim]", "Y_new": "[batch, kv_heads, 1, head_dim]"},
    [_EPSILON],
)
# Never in a finished graph: a graph pass makes it the standard TensorScatter.
SCATTER_ROW = OpSchema(
    "ScatterRow",
    DOMAIN,
    VERSION,
    inputs=[
        OpSchema.FormalParameter("cache", "T"),
        OpSchema.FormalParameter("row", "T"),
        OpSchema.FormalParameter("index", "tensor(int64)"),
    ],
    outputs=[OpSchema.FormalParameter("present", "T")],
    type_constraints=[("T", [*_FLOATS, "tensor(int8)"], "the cache's type")],
)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return how ``torch.onnx.export`` turns our custom PyTorch operators into nodes of the domain."""
    import torch

    import lucid_deploy.ops  # noqa: F401 (registers torch.ops.lucid)

    domain = values.Opset(DOMAIN, VERSION)
    precondition = values.Op(domain, "Precondition", PRECONDITION)
    causal_attention = values.Op(domain, "CausalAttention", CAUSAL_ATTENTION)
    decode_attention = values.Op(domain, "DecodeAttention", DECODE_ATTENTION)

    scatter_row = values.Op(domain, "ScatterRow", SCATTER_ROW)

    def translate_precondition(k, v, k_past, y_past, mask, eps: float, implementation: str):  # type: ignore[no-untyped-def]
        return precondition(k, v, k_past, y_past, mask, epsilon=eps)

    def translate_causal_attention(q, k, y, mask):  # type: ignore[no-untyped-def]
        return causal_attention(q, k, y, mask)

    def translate_decode_attention(q, k_new, v_new, k, y, mask, eps: float, implementation: str):  # type: ignore[no-untyped-def]
        return decode_attention(q, k_new, v_new, k, y, mask, epsilon=eps)

    def translate_scatter_row(cache, row, index):  # type: ignore[no-untyped-def]
        return scatter_row(cache, row, index)

    return {
        torch.ops.lucid.scatter_row.default: translate_scatter_row,
        torch.ops.lucid.precondition.default: translate_precondition,
        torch.ops.lucid.causal_attention.default: translate_causal_attention,
        torch.ops.lucid.decode_attention.default: translate_decode_attention,
    }

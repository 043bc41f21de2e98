"""Let the library's product compute MatMul by a weight, by a change to a graph that is made in memory.

onnxruntime's product is made for many rows, wants a packed copy of the weight, and brings float16 weights to float32
when the graph is loaded. Decoding, batches of it and verifying drafts have few rows. The library's product reads the
weight once, as it lies in the file. The file stays as it is. The head of a model that is tied to its embedding is a
``Gemm`` by a transposed weight.

=============================================  ==================================================
in the file                                    in memory
=============================================  ==================================================
``MatMul(X, weight)``                          ``WeightMatMul(X, weight)``
``MatMul(X, Cast(float16 weight))``, float32   ``WeightMatMulFloat16(X, float16 weight)``
``Gemm(X, weight)``, ``transB`` 1              ``WeightMatMulTransposed(X, weight)``
``Gemm(X, Cast(float16 weight))``, the same    ``WeightMatMulTransposedFloat16(X, float16 weight)``
=============================================  ==================================================
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto, helper

from lucid_deploy.plugins.table import (
    DOMAIN,
    VERSION,
    WEIGHT_MATMUL,
    WEIGHT_MATMUL_FLOAT16,
    WEIGHT_MATMUL_TRANSPOSED,
    WEIGHT_MATMUL_TRANSPOSED_FLOAT16,
)
from lucid_deploy.runtimes.onnxruntime.growing_attention import read_names

_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
_BY = {  # what takes an operator's place: by a weight of its type, and by one in float16
    "MatMul": (WEIGHT_MATMUL, WEIGHT_MATMUL_FLOAT16),
    "Gemm": (WEIGHT_MATMUL_TRANSPOSED, WEIGHT_MATMUL_TRANSPOSED_FLOAT16),
}


def use_weight_matmul(model: onnx.ModelProto) -> bool:
    """Put the library's product in the place of products by a weight, a matrix among the initializers.

    Requires: weights need not be loaded.
    Result: such products in float32 and float16 are changed; casts of weights that nothing else reads are gone.

    Returns:
        Whether it was changed.
    """
    graph = model.graph
    weights = {each.name: each.data_type for each in graph.initializer if len(each.dims) == 2}
    casts = {
        node.output[0]: node.input[0]
        for node in graph.node
        if _widens(node) and weights.get(node.input[0]) == TensorProto.FLOAT16
    }
    changed = False
    for node in graph.node:
        if not _is_product(node) or node.input[0] in weights:
            continue
        same, narrower = _BY[node.op_type]
        if weights.get(node.input[1]) in _TYPES:
            operator = same
        elif node.input[1] in casts:
            operator, node.input[1] = narrower, casts[node.input[1]]
        else:
            continue
        node.op_type, node.domain, changed = operator.name, DOMAIN, True
        del node.attribute[:]
    if not changed:
        return False
    if not any(item.domain == DOMAIN for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    _drop_unread(graph, casts)
    return True


def _is_product(node: onnx.NodeProto) -> bool:
    """Say whether a node multiplies two tensors, the second of a ``Gemm`` transposed, and does nothing else."""
    if node.domain or node.op_type not in _BY:
        return False
    if node.op_type == "MatMul":
        return True
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = given.get("transB", 0) == 1 and given.get("transA", 0) == 0 and given.get("alpha", 1.0) == 1.0
    return plain and len([name for name in node.input if name]) == 2  # without a C, beta does not matter


def _widens(node: onnx.NodeProto) -> bool:
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
    return (node.domain, node.op_type, to) == ("", "Cast", TensorProto.FLOAT)


def _drop_unread(graph: onnx.GraphProto, casts: dict[str, str]) -> None:
    """Remove the casts that nothing reads any more; onnxruntime would make their results all the same."""
    read = Counter(read_names(graph))
    for node in [node for node in graph.node if node.output[0] in casts and not read[node.output[0]]]:
        graph.node.remove(node)

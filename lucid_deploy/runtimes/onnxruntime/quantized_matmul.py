"""Let the library's product compute MatMulNBits at accuracy level 4, by a change to a graph that is made in memory.

Both round inputs to 8 bits block by block. The library reads the weight as it lies in the file, where onnxruntime makes
a packed copy of it for each graph, and takes half of the time for many rows. The file stays as it is.

==================================================  ==================================================
in the file                                         in memory
==================================================  ==================================================
``MatMulNBits(X, W, scales)``                       ``QuantizedMatMul(X, W, scales)``
``MatMulNBits(X, W, scales, zero_points)``          ``QuantizedMatMulZeroPoints(X, W, scales, zero_points)``
==================================================  ==================================================
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from lucid_deploy.plugins.table import DOMAIN, QUANTIZED_MATMUL, QUANTIZED_MATMUL_ZERO_POINTS, VERSION

_CONTRIB = "com.microsoft"
_ROUNDS_INPUTS = 4  # the accuracy level
_BITS = (4, 8)
_BLOCK_STEP, _MOST_IN_BLOCK = 16, 1 << 15  # what the library's blocks are multiples of, and the most numbers of one
_KNOWN = {"K", "N", "bits", "block_size", "accuracy_level"}  # attributes that are understood here
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_INPUTS = (QUANTIZED_MATMUL, QUANTIZED_MATMUL_ZERO_POINTS)  # by whether there are zero points


def use_quantized_matmul(model: onnx.ModelProto) -> bool:
    """Put the library's product in the place of ``MatMulNBits`` that rounds its inputs to 8 bits.

    Requires: weights need not be loaded.
    Result: nodes are changed whose weight is in 4 or 8 bits, in whole blocks of a multiple of 16, with scales in
    float32 or float16, zero points as packed integers or none, and neither a bias nor an order of groups nor an
    attribute that is unknown here; others stay.

    Returns:
        Whether it was changed.
    """
    tensors = {each.name: each for each in model.graph.initializer}
    found = [node for node in model.graph.node if _is_computed(node, tensors)]
    for node in found:
        inputs = [name for name in node.input if name]
        node.op_type, node.domain = _INPUTS[len(inputs) == len(QUANTIZED_MATMUL_ZERO_POINTS.inputs)].name, DOMAIN
        node.input[:] = inputs
        del node.attribute[:]
    if found and not any(item.domain == DOMAIN for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return bool(found)


def _is_computed(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Say whether the library computes a node."""
    if (node.domain, node.op_type) != (_CONTRIB, "MatMulNBits") or any(node.input[4:]):
        return False
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if not given.keys() <= _KNOWN:  # such as one that says that the weight lies in another order
        return False
    depth, columns, bits, block = given["K"], given["N"], given.get("bits", 4), given["block_size"]
    if given.get("accuracy_level", 0) != _ROUNDS_INPUTS or bits not in _BITS:
        return False
    if block % _BLOCK_STEP or block > _MOST_IN_BLOCK or depth % block:
        return False
    blocks = depth // block
    weight, scales = (tensors.get(name) for name in node.input[1:3])
    if weight is None or scales is None or scales.data_type not in _FLOATS:
        return False
    zero_points = tensors.get(node.input[3]) if any(node.input[3:]) else None
    if any(node.input[3:]) and (zero_points is None or zero_points.data_type != TensorProto.UINT8):
        return False
    # Older exports lay scales and zero points out in one axis.
    return (
        list(weight.dims) == [columns, blocks, block * bits // 8]
        and list(scales.dims) == [columns, blocks]
        and (zero_points is None or list(zero_points.dims) == [columns, -(-blocks * bits // 8)])
    )

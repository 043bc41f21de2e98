"""Let attention read a cache as it is stored, by a change to a graph that is made in memory.

Where the cache has another type than the model, an artifact converts all of it in every step, in standard operators,
before ``DecodeAttention``. Our libraries have operators that take the stored tensors instead: onnxruntime's those for
float16 and int8, TensorRT's that for fp8. For int8 there is a body in standard operators as well, which converts
K alone, without its scales, and multiplies by Y as it is. The file stays as it is.

====================================================  =====================================================
in the file, for K and for Y                          in memory
====================================================  =====================================================
``Cast(float16 input)``                               ``DecodeAttentionFloat16(Q, K_new, V_new, K, Y, mask)``
``Mul(Cast(int8 input), scale input)`` [``Cast``]     ``DecodeAttentionInt8(Q, K_new, V_new, K, Y, K_scale,
                                                      Y_scale, mask)``
``Mul(Cast(fp8 input), scale input)`` [``Cast``]      ``DecodeAttentionFloat8(…)``, of the same tensors
====================================================  =====================================================
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

from lucid_deploy.plugins.hosts.onnxruntime.build import PLUGINS
from lucid_deploy.plugins.table import (
    DECODE_ATTENTION,
    DECODE_ATTENTION_FLOAT8,
    DECODE_ATTENTION_FLOAT16,
    DECODE_ATTENTION_INT8,
    DIAGONAL,
    DOMAIN,
    TRAINING,
    UNIT,
    Operator,
)

_TEXTS = {DECODE_ATTENTION: "several", DECODE_ATTENTION_INT8: "int8"}


def attach_body(model: onnx.ModelProto, operator: Operator) -> None:
    """Give a graph that was made or changed in memory the body of an operator in it.

    Requires: nodes of the operator, if there are any, all have the attribute ``diagonal`` or none.
    Result: the graph has the body, unless there is no such node; bodies of ``ai.lucid`` that no node reads are gone.
    """
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    own = [node for node in nodes if node.op_type == operator.name]
    if not own:
        return
    opset = next(item.version for item in model.opset_import if item.domain == "")
    training = any(attribute.name == DIAGONAL.name for node in own for attribute in node.attribute)
    text = PLUGINS / "decode_attention" / f"{_TEXTS[operator]}_{TRAINING if training else UNIT}.onnxtxt"
    body = onnx.parser.parse_function(text.read_text())
    for item in body.opset_import:
        item.version = opset  # a runtime inlines only a function of the same version
    read = {node.op_type for node in nodes} - {operator.name}
    kept = [each for each in model.functions if each.domain != DOMAIN or each.name in read]
    del model.functions[:]
    model.functions.extend([*kept, body])


_K, _Y, _MASK = map(DECODE_ATTENTION.place, ("K", "Y", "mask"))
_FLOAT, _FLOAT16, _BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
MOST_TOKENS_IN_BODY = 1 << 18  # of a context: int32 holds their sums in the body of the operator for int8
_SCALED = {onnx.TensorProto.INT8: DECODE_ATTENTION_INT8, onnx.TensorProto.FLOAT8E4M3FN: DECODE_ATTENTION_FLOAT8}


@dataclass(frozen=True)
class _StoredTensor:
    """What a tensor is converted from: a graph input, its scales if any, and the nodes in between, last to first.

    ``operator`` reads such tensors.
    """

    operator: Operator
    rows: str
    scale: str | None
    nodes: tuple[onnx.NodeProto, ...]


def read_as_stored(model: onnx.ModelProto) -> list[str]:
    """Put operators that read the stored cache in the place of ``DecodeAttention`` and the conversions before it.

    Requires: a decode graph whose cache has another type than the model; weights need not be loaded.
    Result: every ``DecodeAttention`` is changed, or none and the graph is as it was. The new operators compute the
    same, except that an int8 row's values, and an fp8 row's of K, are not rounded to the model's type in between.
    Conversions that something else reads stay.

    Returns:
        Why nothing was changed, a line for each place that is not as expected; empty when the graph was changed.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    inputs = {value.name: value for value in graph.input}
    found: list[tuple[onnx.NodeProto, _StoredTensor, _StoredTensor]] = []
    obstacles = []
    attentions = [node for node in graph.node if node.domain == DOMAIN and node.op_type == DECODE_ATTENTION.name]
    for node in attentions:
        k, y = (_trace_back(node.input[place], makers, inputs) for place in (_K, _Y))
        if k is None or y is None or k.operator is not y.operator:
            names = " and ".join(node.input[_K:_MASK])
            obstacles.append(f"{names} are not converted from the cache in a way that is known")
        else:
            found.append((node, k, y))
    if not attentions:
        obstacles.append(f"there is no {DECODE_ATTENTION.name}")
    if obstacles:
        return obstacles
    for node, k, y in found:
        _replace(node, k, y)
    _drop_unread(graph, [made for _, k, y in found for part in (k, y) for made in part.nodes])
    return []


def _trace_back(
    name: str, makers: dict[str, onnx.NodeProto], inputs: dict[str, onnx.ValueInfoProto]
) -> _StoredTensor | None:
    """Go back from K or Y of the operator to the graph's inputs; None where anything is not exactly as expected."""
    nodes = []
    node = makers.get(name)
    if node is not None and _casts_to(node) in (_FLOAT16, _BFLOAT16):  # such a model rounds the products to its type
        nodes.append(node)
        node = makers.get(node.input[0])
    if node is not None and node.op_type == "Mul" and node.domain == "":
        nodes.append(node)
        cast = makers.get(node.input[0])
        if cast is None or _casts_to(cast) != _FLOAT:
            return None
        nodes.append(cast)
        rows, scale = cast.input[0], node.input[1]
        operator = _reader_of_scaled(inputs, rows, scale)
        return None if operator is None else _StoredTensor(operator, rows, scale, tuple(nodes))
    if nodes or node is None or _casts_to(node) != _FLOAT:
        return None
    rows = node.input[0]
    return _StoredTensor(DECODE_ATTENTION_FLOAT16, rows, None, (node,)) if _is(inputs, rows, _FLOAT16) else None


def _casts_to(node: onnx.NodeProto) -> int | None:
    if node.op_type != "Cast" or node.domain != "":
        return None
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)


def _reader_of_scaled(inputs: dict[str, onnx.ValueInfoProto], rows: str, scale: str) -> Operator | None:
    """Return what reads two graph inputs, rows ``(B, KV, T, D)`` and their float32 scales ``(B, KV, T, 1)``."""
    operator = next((each for kind, each in _SCALED.items() if _is(inputs, rows, kind)), None)
    if operator is None or not _is(inputs, scale, _FLOAT):
        return None
    of_rows, of_scale = (inputs[name].type.tensor_type.shape.dim for name in (rows, scale))
    return operator if list(of_rows[:3]) == list(of_scale[:3]) and of_scale[3].dim_value == 1 else None


def _is(inputs: dict[str, onnx.ValueInfoProto], name: str, kind: int) -> bool:
    """Whether a tensor is a graph input of a type and of four axes."""
    if name not in inputs:
        return False
    tensor = inputs[name].type.tensor_type
    return tensor.elem_type == kind and len(tensor.shape.dim) == 4


def _replace(node: onnx.NodeProto, k: _StoredTensor, y: _StoredTensor) -> None:
    mask = node.input[_MASK]
    del node.input[_K:]
    node.input.extend([k.rows, y.rows])
    if k.scale is not None and y.scale is not None:
        node.input.extend([k.scale, y.scale])
    node.input.append(mask)
    node.op_type = k.operator.name


def _drop_unread(graph: onnx.GraphProto, candidates: list[onnx.NodeProto]) -> None:
    """Remove those nodes, given after what reads them, whose results nothing reads any more."""
    read = Counter(name for node in graph.node for name in node.input)
    read.update(value.name for value in graph.output)
    for node in candidates:
        if any(read[name] for name in node.output) or node not in graph.node:
            continue
        read.subtract(node.input)
        graph.node.remove(node)

"""The body of ``DecodeAttentionInt8``, which a session puts into graphs in memory for runtimes without our kernels.

It is read as text beside its source, so that no session imports a compiler;
``python -m lucid_deploy.export.session_bodies`` writes it.
"""

from __future__ import annotations

import onnx

from lucid_deploy.plugins.hosts.onnxruntime.build import PLUGINS
from lucid_deploy.plugins.table import (
    DECODE_ATTENTION,
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

    Args:
        model: Changed in place.
        operator: ``DecodeAttention``, of several new tokens, or ``DecodeAttentionInt8``.
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

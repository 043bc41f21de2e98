"""Give ``Attention`` its tensors in the model's half type, which is what TensorRT has fused kernels for."""

from __future__ import annotations

import onnx_ir as ir

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def half_attention(model: ir.Model) -> bool:
    """Bypass the casts to float32 around ``Attention`` in half-precision graphs.

    The graphs say float32 since a softmax is to be computed in it. TensorRT's fused attention does so inside whatever
    the type of its tensors, and TensorRT-RTX 1.7 fails on the form with casts (an internal error in its fusion).
    Requires: nothing; attention without such casts is left alone.
    Result: no ``Attention`` lies between casts from and to one half type.

    Returns:
        Whether there was such a node.
    """
    changed = False
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain != "":
            continue
        casts = [value.producer() if value is not None else None for value in node.inputs[:3]]
        after = [usage.node for usage in node.outputs[0].uses()]
        sources = [cast.inputs[0] for cast in casts if cast is not None and cast.op_type == "Cast"]
        if len(sources) != 3 or len(after) != 1 or after[0].op_type != "Cast":
            continue
        types = {source.dtype for source in sources if source is not None} | {after[0].outputs[0].dtype}
        if len(types) != 1 or next(iter(types)) not in _HALF:
            continue
        for index, source in enumerate(sources):
            node.replace_input_with(index, source)
        old, new = after[0].outputs[0], node.outputs[0]
        new.type = old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove(after[0], safe=True)
        for cast in {id(cast): cast for cast in casts if cast is not None}.values():
            if not cast.outputs[0].uses():
                model.graph.remove(cast, safe=True)
        changed = True
    return changed

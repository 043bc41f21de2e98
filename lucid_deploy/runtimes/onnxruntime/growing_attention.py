"""Let the library's attention write the grown cache too, by a change to a graph that is made in memory.

A growing cache is copied in every step: ``Concat`` puts the new rows behind all others. onnxruntime's does it on one
thread, and reads again what attention has just read. The library copies rows while they are near, on all threads.

=====================================================  ==================================================
in the file                                            in memory
=====================================================  ==================================================
``O, Y_new = DecodeAttention(Q, K_new, V_new, K, Y)``  ``O, K_present, Y_present =``
``K_present = Concat(K, K_new)``                       ``DecodeAttentionGrowing(Q, K_new, V_new, K, Y)``
``Y_present = Concat(Y, Y_new)``
=====================================================  ==================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import helper

from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_GROWING, DOMAIN


def read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph reads or gives, once for each time, those inside of its branches and loops too."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from read_names(attribute.g)


_TOKENS = 2  # the axis of a cache


def use_growing_attention(model: onnx.ModelProto) -> bool:
    """Put ``DecodeAttentionGrowing`` in the place of ``DecodeAttention`` and the two ``Concat`` that grow its cache.

    Requires: weights need not be loaded.
    Result: nodes are changed where the new rows go into the cache as they are, and nowhere else; caches that are static
    or stored in another type stay as they were.

    Returns:
        Whether it was changed.
    """
    graph = model.graph
    read = Counter(read_names(graph))
    grown = {tuple(node.input): node for node in graph.node if _joins_tokens(node)}
    gone = []
    for node in graph.node:
        if (node.domain, node.op_type) != (DOMAIN, DECODE_ATTENTION.name):
            continue
        key, cached = (node.input[DECODE_ATTENTION.place(name)] for name in ("K_new", "K"))
        attended, new = node.output
        keys, values = grown.get((cached, key)), grown.get((node.input[DECODE_ATTENTION.place("Y")], new))
        # The grown keys come later now, so no node may read them; they are an output of the graph, which counts as one.
        if keys is None or values is None or read[new] != 1 or read[keys.output[0]] != 1:
            continue
        if not any(output.name == keys.output[0] for output in graph.output):
            continue
        node.op_type = DECODE_ATTENTION_GROWING.name
        node.output[:] = [attended, keys.output[0], values.output[0]]
        gone += [keys, values]
        del grown[cached, key]  # another node that reads this cache does not give it once more
    for node in gone:
        graph.node.remove(node)
    return bool(gone)


def _joins_tokens(node: onnx.NodeProto) -> bool:
    axis = next((helper.get_attribute_value(each) for each in node.attribute if each.name == "axis"), None)
    return (node.domain, node.op_type) == ("", "Concat") and len(node.input) == 2 and axis in (_TOKENS, _TOKENS - 4)

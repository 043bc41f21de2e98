"""The graphs that verify drafts, made in memory of the prefill graph: logits of a few tokens, not of the last alone.

Prefill solves for Y and attends afterwards, which reads K and Y twice, and gives the logits of the last token alone.
Neither is good for a few tokens over a long cache. The file stays as it is, so that no artifact needs another graph.

====================================================  ======================================================
in the file                                           in memory
====================================================  ======================================================
``Y = Precondition(K, V, K_past, Y_past, mask)`` and  ``O, Y = DecodeAttention(Q, K, V, K_past, Y_past, mask)``
``O = CausalAttention(Q, [K_past K], [Y_past Y])``
hidden states of each row's last token, then          final norm and head of all hidden states
final norm and head
with a static cache: ``present = [past new]``         ``present = TensorScatter(past, new, cache_length)``
====================================================  ======================================================

Drafts that run with a prompt, behind its last token, need logits alone: :func:`last_logits`.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from lucid_deploy.plugins.table import (
    CAUSAL_ATTENTION,
    DECODE_ATTENTION,
    DOMAIN,
    PRECONDITION,
)

_PAST, _PRESENT, _MASK, _LENGTH = "past_key_values.", "present.", "attention_mask", "cache_length"
_ROWS, _OPSET = "max_context", 24  # the axis of a static cache's rooms; the opset that has TensorScatter
LOGIT_OFFSETS = "logit_offsets"  # the input of last_logits
_OWN = "several/"  # begins the names of what is added


class NotAsExported(Exception):
    """A graph is not as ``export`` writes it; the text says where."""


def several_tokens(prefill: onnx.ModelProto, static: bool) -> onnx.ModelProto:
    """Return the graph that runs a few new tokens over a cache.

    Requires: a prefill graph with the operators of ``ai.lucid``, layers that cache rows alone; weights need not be
    loaded.
    Result: inputs and outputs of prefill, logits ``(batch, sequence, vocab)``; with ``static``, the cache's are those
    of the decode graph, with ``cache_length``, and every new token counts as one.

    Args:
        prefill: Not changed.
        static: Whether the cache is written in place.

    Raises:
        NotAsExported: The graph has not the nodes that are looked for.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prefill)
    del model.graph.value_info[:]  # shapes that change
    _give_all_logits(model.graph)
    _fuse(model.graph)
    _drop_unread(model.graph)
    if static:
        _write_in_place(model)
        _drop_unread(model.graph)
    _sort(model.graph)
    return model


def last_logits(prefill: onnx.ModelProto) -> bool:
    """Let a prefill graph give the logits of tokens before each row's last one, too.

    Requires: a prefill graph; weights need not be loaded.
    Result: one more input, ``logit_offsets``, int64 ``(kept)``, which is [0] where it is not given: −1 is the token
    before the last one. Logits are ``(batch, kept, vocab)``.

    Args:
        prefill: Changed in place.

    Returns:
        Whether it was changed: not a graph that gives the logits of all tokens.

    Raises:
        NotAsExported: The graph has not the nodes that are looked for.
    """
    graph = prefill.graph
    found = _choice_of_last(graph)
    if found is None:
        return False
    unsqueeze, gather = found
    axis, rows = np.array([1], np.int64), [f"{_OWN}rows", f"{_OWN}kept"]
    graph.initializer.append(onnx.numpy_helper.from_array(axis, _OWN + "axis"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), LOGIT_OFFSETS))
    graph.input.append(onnx.helper.make_tensor_value_info(LOGIT_OFFSETS, onnx.TensorProto.INT64, ["kept"]))
    first = next(index for index, node in enumerate(graph.node) if node.output[0] == gather.output[0])
    graph.node.insert(first, onnx.helper.make_node("Add", [rows[0], LOGIT_OFFSETS], [rows[1]]))
    graph.node.insert(first, onnx.helper.make_node("Unsqueeze", [gather.input[1], _OWN + "axis"], [rows[0]]))
    gather.input[1] = rows[1]
    _rename_input(graph, unsqueeze.output[0], gather.output[0])
    graph.node.remove(unsqueeze)
    del graph.value_info[:]  # shapes that change
    _name_axis(graph.output[0], "kept")
    return True


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _give_all_logits(graph: onnx.GraphProto) -> None:
    """Let final norm and head read the hidden states of all tokens."""
    found = _choice_of_last(graph)
    if found is None:
        return
    unsqueeze, gather = found
    _rename_input(graph, unsqueeze.output[0], _makers(graph)[gather.input[0]].input[0])
    _name_axis(graph.output[0], "sequence")


def _choice_of_last(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return the first and second node of ``Unsqueeze(Gather(Reshape(hidden), last))``, before final norm and head.

    None where a graph was exported with ``--logits all``.
    """
    makers, logits = _makers(graph), graph.output[0]
    if logits.type.tensor_type.shape.dim[1].dim_value != 1:
        return None
    node = makers.get(logits.name)
    while node is not None and node.op_type != "Unsqueeze":
        node = makers.get(node.input[0])
    gather = None if node is None else makers.get(node.input[0])
    rows = None if gather is None or gather.op_type != "Gather" else makers.get(gather.input[0])
    if node is None or gather is None or rows is None or rows.op_type != "Reshape":
        raise NotAsExported("the choice of each row's last token is not found before the logits")
    return node, gather


def _name_axis(logits: onnx.ValueInfoProto, name: str) -> None:
    axis = logits.type.tensor_type.shape.dim[1]
    axis.Clear()
    axis.dim_param = name


def _fuse(graph: onnx.GraphProto) -> None:
    """Put one ``DecodeAttention`` in the place of every pair of solve and attention."""
    makers = _makers(graph)
    attentions = [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, CAUSAL_ATTENTION.name)]
    for solve in [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, PRECONDITION.name)]:
        k, v, k_past, y_past, mask = solve.input
        y = solve.output[0]
        found = [
            node
            for node in attentions
            if _joins(makers.get(node.input[CAUSAL_ATTENTION.place("K")]), k_past, k)
            and _joins(makers.get(node.input[CAUSAL_ATTENTION.place("Y")]), y_past, y)
            and node.input[CAUSAL_ATTENTION.place("mask")] == mask
        ]
        if len(found) != 1:
            raise NotAsExported(f"the attention that reads {y} is not found")
        [attention] = found
        attention.op_type = DECODE_ATTENTION.name
        q = attention.input[CAUSAL_ATTENTION.place("Q")]
        del attention.input[:]
        attention.input.extend([q, k, v, k_past, y_past, mask])
        attention.output.append(y)
        attention.attribute.extend(solve.attribute)
        graph.node.remove(solve)


def _joins(node: onnx.NodeProto | None, past: str, new: str) -> bool:
    """Whether a node puts new rows behind those of the past."""
    return node is not None and node.op_type == "Concat" and list(node.input) == [past, new]


def _write_in_place(model: onnx.ModelProto) -> None:
    """Make the cache's inputs and outputs those of decoding with a static cache."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.name.startswith((_PAST, _PRESENT)):
            value.type.tensor_type.shape.dim[2].dim_param = _ROWS
        elif value.name == _MASK:
            value.type.tensor_type.shape.dim[1].dim_param = _ROWS
    graph.input.append(onnx.helper.make_tensor_value_info(_LENGTH, onnx.TensorProto.INT64, ["batch"]))
    _mask_rooms(graph)
    for value in graph.output:
        if value.name.startswith(_PRESENT):
            _scatter(graph, value.name)
    for item in (*model.opset_import, *(each for function in model.functions for each in function.opset_import)):
        if item.domain == "":
            item.version = max(item.version, _OPSET)
    model.ir_version = max(model.ir_version, 11)


def _mask_rooms(graph: onnx.GraphProto) -> None:
    """Make the operators' mask, bool ``(batch, max_context + sequence)``: rows that hold a token, and all new ones."""
    readers = [node for node in graph.node if _MASK in node.input and not _reads_batch(node)]
    if [node.op_type for node in readers] != ["Cast"]:
        raise NotAsExported(f"{_MASK} is read by something else than one Cast and for the batch")
    [cast] = readers
    make, names, mask = onnx.helper.make_node, [f"{_OWN}{index}" for index in range(9)], cast.output[0]
    cast.output[0] = f"{_OWN}held"
    constants = {"zero": np.int64(0), "one": np.int64(1), "axis": np.array([1], np.int64), "true": np.array([True])}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(x), _OWN + name) for name, x in constants.items())
    graph.node.extend(
        [
            make("Shape", [_MASK], [names[0]], start=1, end=2),
            make("Squeeze", [names[0]], [names[1]]),
            make("Range", [_OWN + "zero", names[1], _OWN + "one"], [names[2]]),
            make("Unsqueeze", [_LENGTH, _OWN + "axis"], [names[3]]),
            make("Less", [names[2], names[3]], [names[4]]),
            make("And", [names[4], cast.output[0]], [names[5]]),
            make("Shape", ["input_ids"], [names[6]]),
            make("Expand", [_OWN + "true", names[6]], [names[7]]),
            make("Concat", [names[5], names[7]], [mask], axis=1),
        ]
    )


def _reads_batch(node: onnx.NodeProto) -> bool:
    """Whether a node reads a tensor's first axis, the batch, alone: graphs of one layer read it from the mask."""
    axes = {attribute.name: attribute.i for attribute in node.attribute}
    return node.op_type == "Shape" and axes == {"start": 0, "end": 1}


def _scatter(graph: onnx.GraphProto, present: str) -> None:
    """Write the new rows of a tensor into its buffer; what else reads past and new rows as one goes on doing so."""
    past = _PAST + present.removeprefix(_PRESENT)
    joined = _makers(graph)[present]
    if joined.op_type != "Concat" or joined.input[0] != past or len(joined.input) != 2:
        raise NotAsExported(f"{present} is not {past} with the new rows behind it")
    new = joined.input[1]
    joined.output[0] = f"{_OWN}{present}"
    _rename_input(graph, present, joined.output[0])
    graph.node.append(onnx.helper.make_node("TensorScatter", [past, new, _LENGTH], [present], axis=-2))


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = Counter(name for node in graph.node for name in node.input)
    read.update(value.name for value in graph.output)
    for node in reversed(list(graph.node)):
        if not any(read[name] for name in node.output):
            read.subtract(node.input)
            graph.node.remove(node)


def _sort(graph: onnx.GraphProto) -> None:
    """Bring the nodes into an order in which every value is made before it is read."""
    makers, ordered, seen = _makers(graph), list[onnx.NodeProto](), set[int]()

    def visit(node: onnx.NodeProto) -> None:
        pending = [(node, iter(node.input))]
        seen.add(id(node))
        while pending:
            current, names = pending[-1]
            for name in names:
                before = makers.get(name)
                if before is not None and id(before) not in seen:
                    seen.add(id(before))
                    pending.append((before, iter(before.input)))
                    break
            else:
                ordered.append(current)
                pending.pop()

    nodes = list(graph.node)
    for node in nodes:
        if id(node) not in seen:
            visit(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)

"""Join the prefill and the decode graph into one that runs a chunk of a prompt and a decode step of other rows.

Quantized weights are read once for both. Attention stays as it is in each graph; multiplications by weights, norms,
activations and residual sums run once for all tokens, the prompt's before the rows':

===========================================  ==================================================================
in the two graphs                            in the joined one
===========================================  ==================================================================
``QuantizedMatMul(X, weight)``, twice        ``QuantizedMatMul(Concat(X, Transpose(X of the rows)), weight)``
norm, activation or sum of such results      the same, once, of the joined results
any other node that reads such a result      reads a ``Slice`` of the joined result
===========================================  ==================================================================

Hidden states are ``(1, N, C)`` for the prompt, ``(B, 1, C)`` for the rows, and ``(1, N + B, C)`` joined; behind a
``Reshape`` to ``(-1, C)``, which the head has, the joined tensor is ``(N + B, C)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from lucid_deploy.errors import CheckFailed
from lucid_deploy.plugins.table import (
    DOMAIN,
    QUANTIZED_MATMUL,
    QUANTIZED_MATMUL_OFFSETS,
    QUANTIZED_MATMUL_ZERO_POINTS,
)
from lucid_deploy.runtimes.graph_sessions import ROWS

_JOINED = "joined."
_COUNT, _MINUS_COUNT, _ZERO, _END, _TOKENS = "rows_count", "minus_rows_count", "zero", "end", "token_axis"
_PRODUCTS = (QUANTIZED_MATMUL, QUANTIZED_MATMUL_OFFSETS, QUANTIZED_MATMUL_ZERO_POINTS)
_WITH_WEIGHTS = {("", "RMSNormalization"), *((DOMAIN, each.name) for each in _PRODUCTS)}
_ELEMENTWISE = {("", name) for name in ("Add", "Mul", "Sub", "Sigmoid", "Tanh", "Gelu", "Relu")}


def share_step(prompt: onnx.ModelProto, rows: onnx.ModelProto) -> onnx.ModelProto:
    """Return the joined graph, whose inputs and outputs are those of both; the rows' names begin with ``rows.``.

    Requires: the prefill and the decode graph of one artifact after all other passes, without nested graphs. The prompt
    is a batch of one row.

    Raises:
        CheckFailed: The two graphs use their weights in different orders, so they are not of one model.
    """
    known = {each.SerializeToString() for each in (*prompt.graph.initializer, *prompt.graph.node)}
    common = {each.name for each in rows.graph.initializer if each.SerializeToString() in known}
    casts = [each for each in rows.graph.node if each.op_type == "Cast" and common.issuperset(each.input)]
    common |= {each.output[0] for each in casts if each.SerializeToString() in known}
    renamed, joined = _renamed(rows, common), onnx.ModelProto()
    joined.CopyFrom(prompt)
    graph = joined.graph
    del graph.node[:], graph.value_info[:], joined.opset_import[:]
    for field in ("input", "output", "initializer"):
        getattr(graph, field).extend(getattr(renamed.graph, field))
    defined = {(each.domain, each.name) for each in joined.functions}
    joined.functions.extend(each for each in rows.functions if (each.domain, each.name) not in defined)
    versions: dict[str, int] = {}
    for each in (*prompt.opset_import, *rows.opset_import):
        versions[each.domain] = max(each.version, versions.get(each.domain, 0))
    joined.opset_import.extend(helper.make_opsetid(*each) for each in versions.items())
    numbers = {_ZERO: 0, _END: 1 << 62, f"{_TOKENS}_0": 0, f"{_TOKENS}_1": 1}
    graph.initializer.extend(helper.make_tensor(name, TensorProto.INT64, [1], [n]) for name, n in numbers.items())
    nodes = [
        helper.make_node("Shape", [f"{ROWS}input_ids"], [_COUNT], start=0, end=1),
        helper.make_node("Neg", [_COUNT], [_MINUS_COUNT]),
        *_Joining(prompt.graph, renamed.graph, common).nodes(),
    ]
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {index: {makers[name] for name in node.input if name in makers} for index, node in enumerate(nodes)}
    try:
        graph.node.extend(nodes[index] for index in TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise CheckFailed("The prefill and the decode graph use their weights in different orders.") from error
    return joined


def _renamed(rows: onnx.ModelProto, common: set[str]) -> onnx.ModelProto:
    """Return a copy without the common weights and casts, in which all other names begin with ``rows.``."""
    model = onnx.ModelProto()
    model.CopyFrom(rows)
    graph = model.graph
    for field, own in (
        ("node", [each for each in rows.graph.node if each.output[0] not in common]),
        ("initializer", [each for each in rows.graph.initializer if each.name not in common]),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(own)
    for node in graph.node:
        node.name = node.name and ROWS + node.name
        node.input[:] = [name if name in common or not name else ROWS + name for name in node.input]
        node.output[:] = [ROWS + name for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = ROWS + value.name
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_param = axis.dim_param and ROWS + axis.dim_param
    return model


class _Joining:
    """Finds pairs of nodes, one in each graph, that compute the same for every token, and joins each pair."""

    def __init__(self, prompt: onnx.GraphProto, rows: onnx.GraphProto, common: set[str]) -> None:
        self._prompt, self._rows, self._common = prompt, rows, common
        infos, constants = (*prompt.value_info, *rows.value_info), (*prompt.initializer, *rows.initializer)
        self._hidden = {each.name for each in infos if len(each.type.tensor_type.shape.dim) == 3}
        self._shapes = {each.name: _pair_of_sizes(each) for each in constants}
        self._pairs: dict[str, onnx.NodeProto] = {}  # by the output of the prompt's node: the rows' node
        self._rank: dict[str, int] = {}  # of the outputs that are joined: 3 for hidden states, 2 behind a Reshape
        same: dict[tuple[Any, ...] | None, list[onnx.NodeProto]] = {}
        for node in rows.node:
            same.setdefault(self._key(node, list(node.input)), []).append(node)
        for node in prompt.node:
            key = self._key(node, [self._counterpart(name) for name in node.input])
            found = [] if key is None else same.get(key, [])
            if len(found) == 1 and (rank := self._rank_of(node, found[0])):
                self._pairs[node.output[0]], self._rank[node.output[0]] = found[0], rank

    def _counterpart(self, name: str) -> str | None:
        return self._pairs[name].output[0] if name in self._pairs else None

    def _key(self, node: onnx.NodeProto, names: list[str | None]) -> tuple[Any, ...] | None:
        """Return a key that two nodes of a pair share; it omits the input X of a MatMul or norm. None: never a pair."""
        operator = node.domain, node.op_type
        attributes = sorted(each.SerializeToString() for each in node.attribute)
        if operator in _WITH_WEIGHTS and self._common.issuperset(node.input[1:]):
            return (*operator, *attributes, *node.input[1:])
        if operator in _ELEMENTWISE:
            return (*operator, *attributes, *names)
        if operator == ("", "Reshape"):
            return (*operator, names[0], self._shapes.get(node.input[1]))
        return None

    def _rank_of(self, node: onnx.NodeProto, rows_node: onnx.NodeProto) -> int | None:
        """Return the rank of a pair's joined result; None if they cannot be joined."""
        names = [name for name in node.input if name not in self._common]
        ranks = {self._rank[name] for name in names if name in self._pairs}
        if node.op_type == "Reshape":
            return 2 if ranks == {3} and self._shapes.get(node.input[1]) else None
        if (node.domain, node.op_type) in _ELEMENTWISE:
            return ranks.pop() if len(ranks) == 1 and all(name in self._pairs for name in names) else None
        if self._counterpart(node.input[0]) == rows_node.input[0]:
            return ranks.pop()
        return 3 if self._hidden.issuperset((node.input[0], rows_node.input[0])) else None

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of the joined graph, in any order."""
        joined_rows = {node.output[0] for node in self._pairs.values()}
        concatenated, read = set(), {each.name for each in (*self._prompt.output, *self._rows.output)}
        for node in self._prompt.node:
            if (rows_node := self._pairs.get(node.output[0])) is None:
                read.update(node.input)
                yield node
                continue
            inputs = list(node.input)
            for place, name in enumerate(inputs[: 1 if node.op_type == "Reshape" else None]):
                if name in self._common:
                    continue
                inputs[place] = _JOINED + name
                if self._counterpart(name) != rows_node.input[place] and name not in concatenated:
                    concatenated.add(name)
                    read |= {name, rows_node.input[place]}
                    yield from _concatenate(name, rows_node.input[place])
            made = onnx.NodeProto()
            made.CopyFrom(node)
            made.input[:], made.output[:] = inputs, [_JOINED + node.output[0]]
            yield made
        for node in self._rows.node:
            if node.output[0] not in joined_rows:
                read.update(node.input)
                yield node
        for name, rows_node in self._pairs.items():
            if read & {name, rows_node.output[0]}:
                yield from _split(name, rows_node.output[0], self._rank[name])


def _pair_of_sizes(tensor: onnx.TensorProto) -> tuple[int, int] | None:
    """Return the constant ``(-1, C)`` of a ``Reshape`` that joins all axes but the last; None for other tensors."""
    if list(tensor.dims) != [2] or tensor.data_type != TensorProto.INT64 or tensor.external_data:
        return None
    rows, width = numpy_helper.to_array(tensor).tolist()
    return (rows, width) if rows == -1 else None


def _concatenate(name: str, rows: str) -> list[onnx.NodeProto]:
    """Return nodes that concatenate ``(1, N, C)`` and ``(B, 1, C)`` to ``(1, N + B, C)``."""
    turned = f"{rows}.turned"
    return [
        helper.make_node("Transpose", [rows], [turned], perm=[1, 0, 2]),
        helper.make_node("Concat", [name, turned], [_JOINED + name], axis=1),
    ]


def _split(name: str, rows: str, rank: int) -> list[onnx.NodeProto]:
    """Return nodes that split a joined tensor into the prompt's part ``name`` and the rows' part ``rows``."""
    joined, axis, turned = _JOINED + name, f"{_TOKENS}_{rank - 2}", rows if rank == 2 else f"{rows}.turned"
    nodes = [
        helper.make_node("Slice", [joined, _ZERO, _MINUS_COUNT, axis], [name]),
        helper.make_node("Slice", [joined, _MINUS_COUNT, _END, axis], [turned]),
    ]
    return nodes if rank == 2 else [*nodes, helper.make_node("Transpose", [turned], [rows], perm=[1, 0, 2])]

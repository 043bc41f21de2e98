"""Trace equal layers once: choose a shorter model, the excerpt, and build the whole model's graph from its graph."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription


@dataclass(frozen=True)
class Excerpt:
    """A shorter model with the first layer of each kind of the whole model, and the second of each kind that repeats.

    Layers are of one kind if their descriptions, rotary settings and, in transformers' classes, ``AttentionShape.like``
    are equal. The first one may also compute what all layers share (masks, cosines), so the second one is repeated.
    """

    config: LucidConfig  # of the shorter model
    origins: tuple[int, ...]  # for each layer of the shorter model, its index in the whole model
    sources: tuple[int, ...]  # for each layer of the whole model, the layer of the shorter model to copy


def excerpt(config: LucidConfig, layers: tuple[LayerDescription, ...]) -> Excerpt | None:
    """Choose the excerpt of a model; return None if it would not be shorter than the model."""
    kinds: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        like = config.attention[index].like if config.attention else None
        kinds.setdefault(f"{layer} {config.rope(index)} {like}", []).append(index)
    repeated = [members for members in kinds.values() if len(members) > 1]
    origins = [members[0] for members in kinds.values()]
    first = {index: place for place, index in enumerate(origins)}
    patterns: dict[int, int] = {}  # the shorter model's layer to copy for a kind, by the kind's first layer
    for members in repeated:
        patterns[members[0]] = len(origins)
        origins.append(members[1])
    if len(origins) >= len(layers):
        return None
    kind_of = {index: members[0] for members in kinds.values() for index in members}
    shorter = dataclasses.replace(
        config,
        num_hidden_layers=len(origins),
        layer_kinds=tuple(config.kinds[index] for index in origins),
        rope_layers=tuple(config.rope_layers[index] for index in origins) if config.rope_layers else (),
        attention=tuple(config.attention[index] for index in origins) if config.attention else (),
        class_layers=tuple(origins) if config.attention else (),
    )
    sources = tuple(first.get(index, patterns.get(kind_of[index], -1)) for index in range(len(layers)))
    return Excerpt(shorter, tuple(origins), sources)


_LAYER = re.compile(r"(past_key_values\.|present\.|model\.layers\.)(\d+)(\..*)")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
LayerOfNode = Mapping[ir.Node, int | None]


class NotRepeatable(Exception):
    """Raised if layers have subgraphs, depend on nodes between layers, or do not pass on exactly one value."""


def repeat_layers(
    model: ir.Model,
    layers: LayerOfNode,
    origins: Sequence[int],
    sources: Sequence[int],
    inputs: Iterable[str],
    outputs: Iterable[str],
) -> tuple[ir.Model, dict[ir.Node, int | None]]:
    """Return the graph that tracing the whole model would give, node for node, and each node's layer.

    Requires: ``model`` is the excerpt's graph, with the final names of inputs and outputs; weights have no data.
    Result: a new model; ``model`` does not change. Raises ``NotRepeatable`` if the graph cannot be built in this way.

    Args:
        layers: The layer of each node in the excerpt; None outside all layers.
        origins: As in ``Excerpt``.
        sources: As in ``Excerpt``.
        inputs: Names of the whole model's inputs, in order.
        outputs: Names of its outputs, in order.
    """
    parts = _parts(model.graph, layers, len(origins))
    graph = _Whole(model.graph, origins, sources)
    for node in parts.before:
        graph.add(node, None)
    stream: ir.Value | None = None
    shared: dict[ir.Value, ir.Value] = {}
    for index, source in enumerate(sources):
        local = dict(shared)
        if source > 0:
            assert stream is not None
            local[parts.streams[source - 1]] = stream
        for node in parts.layers[source]:
            graph.add(node, index, source, local)
        stream = local[parts.streams[source]]
        if index == origins[source]:
            shared |= {value: local[value] for node in parts.layers[source] for value in node.outputs}
    assert stream is not None
    local = shared | {parts.streams[-1]: stream}
    for node in parts.behind:
        graph.add(node, None, values=local)
    return graph.model(model, inputs, outputs), graph.layers


def repeat_names(names: Iterable[str], sources: Sequence[int]) -> set[str]:
    """Return the names of the whole model's weights that are copies of the excerpt's weights of these names."""
    return {
        _renumbered(name, _always(index))
        for name in names
        for index, source in enumerate(sources)
        if _renumbered(name, _always(source)) == name
    }


@dataclass(frozen=True)
class _Parts:
    """A graph's nodes before, in and after the layers, and the residual stream that each layer returns."""

    before: list[ir.Node]
    layers: list[list[ir.Node]]
    behind: list[ir.Node]
    streams: list[ir.Value]


def _parts(graph: ir.Graph, layers: LayerOfNode, count: int) -> _Parts:
    found: list[list[ir.Node]] = [[] for _ in range(count)]
    before: list[ir.Node] = []
    behind: list[ir.Node] = []
    for node in graph:
        layer = layers[node]
        if layer is not None:
            found[layer].append(node)
        elif any(layers[use.node] is not None for value in node.outputs for use in value.uses()) or not any(found):
            before.append(node)
        else:
            behind.append(node)
    inner = {node for nodes in found for node in nodes}
    for node in before:
        if any(value is not None and value.producer() in {*inner, *behind} for value in node.inputs):
            raise NotRepeatable
    for node in inner:
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            raise NotRepeatable
    *streams, last = ([*_handed_on(nodes, layers, layer, count)] for layer, nodes in enumerate(found))
    # The first layer of a kind may also pass on shared values. The stream has the last layer's operator and shape.
    streams = [[value for value in handed if _form(value) == _form(last[0])] for handed in streams if last]
    if any(len(handed) != 1 for handed in (*streams, last)):
        raise NotRepeatable
    return _Parts(before, found, behind, [handed[0] for handed in (*streams, last)])


def _handed_on(nodes: list[ir.Node], layers: LayerOfNode, layer: int, count: int) -> Iterator[ir.Value]:
    """Yield a layer's values that are read, outside it, only by the next layer (or the nodes after the last layer)."""
    following = layer + 1 if layer + 1 < count else None
    for value in (value for node in nodes for value in node.outputs):
        if {layers[use.node] for use in value.uses()} - {layer} == {following}:
            yield value


def _form(value: ir.Value) -> tuple[str, str]:
    producer = value.producer()
    return "" if producer is None else producer.op_type, str(value.shape)


class _Whole:
    """The graph under construction: copies of nodes, and of the inputs and weights that they read."""

    def __init__(self, graph: ir.Graph, origins: Sequence[int], sources: Sequence[int]) -> None:
        self.graph, self.origins, self.sources = graph, origins, sources
        self.layers: dict[ir.Node, int | None] = {}
        self._values: dict[ir.Value, ir.Value] = {}
        self._named = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
        self._new: dict[str, ir.Value] = {}  # inputs and initializers, by their names in the whole graph
        self._results: dict[str, ir.Value] = {}  # outputs, by name
        self._outputs = {value: str(value.name) for value in graph.outputs}

    def add(
        self,
        node: ir.Node,
        layer: int | None,
        source: int | None = None,
        values: dict[ir.Value, ir.Value] | None = None,
    ) -> None:
        """Add a copy of a node.

        Args:
            layer: The node's layer in the whole model; None outside all layers.
            source: The node's layer in the excerpt.
            values: Maps the excerpt's values to their copies; the node's outputs are added.
        """
        values = self._values if values is None else values

        def number(traced: int) -> int:
            return layer if layer is not None and traced == source else self.origins[traced]

        def read(value: ir.Value | None) -> ir.Value | None:
            if value is None:
                return None
            if value.producer() is None:
                return self.outside(_renumbered(str(value.name), number))
            return values.get(value) or self._values[value]

        copy = ir.Node(
            node.domain,
            node.op_type,
            [read(value) for value in node.inputs],
            node.attributes,
            overload=node.overload,
            outputs=[_copied(value, None) for value in node.outputs],
            version=node.version,
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            values[old] = new
            if old in self._outputs:
                new.name = _renumbered(self._outputs[old], number)
                self._results[new.name] = new
        self.layers[copy] = layer

    def outside(self, name: str) -> ir.Value:
        """Return the whole graph's input or initializer of a name, copied when it is first requested."""
        if name not in self._new:
            self._new[name] = _copied(self._named[_renumbered(name, lambda index: self.sources[index])], name)
        return self._new[name]

    def model(self, model: ir.Model, inputs: Iterable[str], outputs: Iterable[str]) -> ir.Model:
        """Return a model with the finished graph and the IR version and functions of ``model``."""
        given = [self.outside(name) for name in inputs]
        graph = ir.Graph(
            given,
            [self._results[name] for name in outputs],
            nodes=self.layers,
            initializers=[self.outside(name) for name in self._initializers()],
            opset_imports=dict(self.graph.opset_imports),
            name=self.graph.name,
        )
        return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))

    def _initializers(self) -> Iterable[str]:
        """Yield the initializers' names in the excerpt's order, but all layers' names at the first layer's place."""
        members: dict[int, list[str]] = {}
        for name in self.graph.initializers:
            if match := _LAYER.fullmatch(name):
                members.setdefault(int(match[2]), []).append(name)
        done = False
        for name in self.graph.initializers:
            if not _LAYER.fullmatch(name):
                yield name
            elif not done:
                done = True
                for index, source in enumerate(self.sources):
                    yield from (_renumbered(item, _always(index)) for item in members[source])


def _renumbered(name: str, number: Callable[[int], int]) -> str:
    """Return the name of a layer's input, output or weight with another layer number; other names unchanged."""
    match = _LAYER.fullmatch(name)
    return name if match is None else f"{match[1]}{number(int(match[2]))}{match[3]}"


def _always(number: int) -> Callable[[int], int]:
    return lambda _: number


def _copied(value: ir.Value, name: str | None) -> ir.Value:
    shape = None if value.shape is None else ir.Shape(list(value.shape))
    return ir.Value(name=name, shape=shape, type=value.type, const_value=value.const_value)

"""A graph whose layers are copies is the graph that tracing all layers gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lucid_deploy.export.trace as tracing
from lucid_deploy.export import ExportOptions
from lucid_deploy.export.passes.naming import layers_of
from lucid_deploy.export.passes.repeat_layers import NotRepeatable, excerpt, repeat_layers
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.description import describe
from tests.conftest import TINY
from tests.export.passes import graphs
from tests.parity.small_models import small_config

pytestmark = pytest.mark.usefixtures("fresh_traces")


def traced(monkeypatch: pytest.MonkeyPatch) -> list[onnx.GraphProto]:
    """Return the graph of all layers traced, and that of copies; one kind of layer comes once."""
    config = parse_config({**TINY, "num_hidden_layers": 4, "lucid_layers": [0, 1, 3]}, "test configuration")
    repeated = tracing.trace(config, "prefill", ExportOptions())
    with monkeypatch.context() as patched:
        patched.setattr(tracing, "excerpt", lambda *_: None)
        whole = tracing.trace(config, "prefill", ExportOptions())
    assert whole.transposed == repeated.transposed
    assert list(whole.model.graph.initializers) == list(repeated.model.graph.initializers)
    return [ir.serde.serialize_model(item.model).graph for item in (whole, repeated)]


def test_the_repeated_graph_equals_the_traced_one_node_for_node(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, repeated = traced(monkeypatch)
    for graph in (whole, repeated):  # which layer's past tells the number of rows does not matter
        for node in graph.node:
            if node.op_type == "Shape" and node.input[0].startswith("past_key_values"):
                node.input[0] = "past_key_values." + node.input[0].rpartition(".")[2]
            del node.metadata_props[:]
    assert list(repeated.node) == list(whole.node)
    assert [item.name for item in repeated.initializer] == [item.name for item in whole.initializer]
    values = [[(item.name, str(item.type)) for item in (*g.input, *g.output)] for g in (whole, repeated)]
    assert values[0] == values[1]


def chain() -> ir.Model:
    """Two layers: each multiplies by its weight; the first makes what both of them read."""
    nodes = [onnx.helper.make_node("Neg", ["x"], ["shared"])]
    for layer in range(2):
        nodes.append(onnx.helper.make_node("Add", [f"h{layer}", "shared"], [f"s{layer}"]))
        nodes.append(onnx.helper.make_node("Mul", [f"s{layer}", f"model.layers.{layer}.w"], [f"h{layer + 1}"]))
    nodes[1].input[0] = "x"
    weights = {f"model.layers.{layer}.w": (graphs.FLOAT, [2]) for layer in range(2)}
    behind = onnx.helper.make_node("Relu", ["h2"], ["y"])
    made = graphs.model([*nodes, behind], {"x": (graphs.FLOAT, [2]), **weights}, {"y": (graphs.FLOAT, [2])})
    for node, layer in zip(made.graph, [0, 0, 0, 1, 1, None], strict=True):
        note = "['model']" if layer is None else f"['model', 'model.layers.{layer}']"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = note
    return made


def test_a_repeated_layer_reads_its_own_weights() -> None:
    model = chain()
    names = ["x", *(f"model.layers.{layer}.w" for layer in range(5))]
    whole, layers = repeat_layers(model, layers_of(model.graph), (0, 1), (0, 1, 1, 1, 1), names, ["y"])
    onnx.checker.check_model(ir.serde.serialize_model(whole))
    assert [value.name for value in whole.graph.inputs] == names
    assert list(layers.values()) == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, None]
    found = onnx.reference.ReferenceEvaluator(ir.serde.serialize_model(whole)).run(
        None, {"x": np.float32([-1, -2]), **{name: np.float32([2, 3]) for name in names[1:]}}
    )
    wanted = np.float32([-1, -2])
    for _ in range(5):
        wanted = (wanted - np.float32([-1, -2])) * np.float32([2, 3])
    np.testing.assert_array_equal(found[0], np.maximum(wanted, 0))


def test_what_cannot_be_copied_is_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> Any:
        raise NotRepeatable

    monkeypatch.setattr(tracing, "repeat_layers", cannot)
    config = parse_config({**TINY, "num_hidden_layers": 3}, "test configuration")
    found = tracing.trace(config, "decode", ExportOptions()).model.graph
    layers = [layer for layer in layers_of(found).values() if layer is not None]
    assert sorted(set(layers)) == [0, 1, 2] and layers.count(1) == layers.count(2)


def planned(kinds: tuple[str, ...], **changes):
    config = small_config(num_hidden_layers=len(kinds), layer_kinds=kinds, sliding_window=4, **changes)
    return excerpt(config, describe(config, "float32"))


L, S, W = "lucid", "standard", "window"


@pytest.mark.parametrize(
    ("kinds", "origins", "sources"),
    [
        ((L,) * 6, (0, 1), (0, 1, 1, 1, 1, 1)),
        ((W, W, L) * 3, (0, 2, 1, 5), (0, 2, 1, 2, 2, 3, 2, 2, 3)),
        ((S, S, L, S, S, S), (0, 2, 1), (0, 2, 1, 2, 2, 2)),  # a kind of one layer is not copied
    ],
)
def test_an_excerpt_of_mixed_layers(kinds: tuple[str, ...], origins: tuple[int, ...], sources: tuple[int, ...]) -> None:
    found = planned(kinds)
    assert (found.origins, found.sources) == (origins, sources)
    assert found.config.kinds == tuple(kinds[index] for index in origins)
    assert all(kinds[index] == found.config.kinds[source] for index, source in enumerate(sources))


def test_layers_with_other_rotary_settings_are_of_another_kind() -> None:
    found = planned((L,) * 8, rope_layers=(True, True, True, False) * 2)
    assert (found.origins, found.config.rope_layers) == ((0, 3, 1, 7), (True, False, True, False))
    assert found.sources == (0, 2, 2, 1, 2, 2, 2, 3)

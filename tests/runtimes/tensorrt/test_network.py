"""A graph becomes an engine; what TensorRT did not take as it was meant is refused before the build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import TensorProto, helper

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.network import check_in_place, check_plugin_layers
from lucid_deploy.runtimes.tensorrt.prepare import PreparedGraph

KINDS = SimpleNamespace(
    **{name: name for name in ("PLUGIN_V3", "KV_CACHE_UPDATE", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")}
)


class PluginLayer(SimpleNamespace):
    """``IPluginV3Layer``, and the base class that the bindings return in its place."""


TRT = SimpleNamespace(LayerType=KINDS, IPluginV3Layer=PluginLayer, PluginCapabilityType=SimpleNamespace(CORE="core"))


def network(*layers: Any) -> Any:
    return SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])


def plugin(operator: str, name: str) -> PluginLayer:
    core = SimpleNamespace(plugin_name=operator)
    return PluginLayer(type=KINDS.PLUGIN_V3, name=name, plugin=SimpleNamespace(get_capability_interface=lambda _: core))


def graph(updates: int = 0, **nodes: int) -> PreparedGraph:
    return PreparedGraph("decode", b"", nodes, updates)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([plugin("Solve", "a")], r"'Solve': 2} the plugin library took {'Solve': 1}\.$"),
        ([plugin("Solve", "a"), plugin("Other", "b")], r"took {'Solve': 1, 'Other': 1}\.$"),
        (
            [plugin("Solve", "a"), plugin("Solve", "b"), SimpleNamespace(type=KINDS.RECURRENCE, name="again")],
            "and loops are left: again",
        ),
    ],
)
def test_nodes_that_something_else_took(layers: list[Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        check_plugin_layers(TRT, network(*layers), graph(Solve=2))


def test_cache_updates_must_be_in_place() -> None:
    update = SimpleNamespace(type=KINDS.KV_CACHE_UPDATE)
    check_in_place(TRT, network(update, update), graph(2))
    with pytest.raises(LucidError, match="Of the decode graph's 3 cache updates TensorRT does 2 in place"):
        check_in_place(TRT, network(update, update), graph(3))


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Any]:
    pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
    from lucid_deploy.runtimes.tensorrt.backend import load_backend
    from lucid_deploy.runtimes.tensorrt.network import Settings, build_engine

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "small", [x], [y]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    ).SerializeToString()

    def run(content: bytes = model, progress: Any = lambda *_: None) -> Any:
        prepared = PreparedGraph("prefill", content, {}, 0)
        profile = {"x": ((1, 8), (2, 8), (4, 8))}
        return build_engine(load_backend("tensorrt-rtx"), prepared, tmp_path, profile, Settings(), progress)

    return run


def test_a_small_graph_is_built(build: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    engine = build(progress=lambda *now: seen.append(now))
    assert len(bytes(engine.content)) > 1000 and engine.layers >= 1
    assert (engine.plugin_layers, engine.timings, engine.timing_cache) == ({}, None, None)
    assert seen == sorted(seen) and seen

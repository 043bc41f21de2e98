"""Shortcuts through PyTorch's exporter: graphs are the same to the byte, and nothing stays changed."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx_ir import schemas
from onnxscript._framework_apis import torch_2_5
from onnxscript._internal import converter, values
from torch import Tensor
from torch.onnx._internal.exporter import _registration
from torch.onnx._internal.fx.passes import type_promotion

from lucid_deploy.export import capture as capturing
from lucid_deploy.export import exporter_shortcuts, operators
from lucid_deploy.export.trace import Traced, trace
from lucid_deploy.model.config import parse_config
from lucid_deploy.plugins.table import DIAGONAL, PRECONDITION
from tests.conftest import TINY
from tests.export.other_pytorch import hide

pytestmark = pytest.mark.slow
LUCID_AND_WINDOW = {
    "layer_types": ["full_attention", "sliding_attention"],
    "lucid_layers": [0],
    "sliding_window": 9,
}


@contextmanager
def _none() -> Iterator[None]:
    yield


class Module(torch.nn.Module):
    def __init__(self, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.compute(x, n)


def _captured(compute: Callable[[Tensor, Tensor], Tensor]) -> bytes:
    arguments = torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 1, dtype=torch.int64)
    axes = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    return _bytes(capturing.capture(Module(compute).eval(), arguments, axes, ["x", "n"], ["y"]))


def _bytes(model: ir.Model) -> bytes:
    """All but the lines of Python that made each node, which no artifact keeps."""
    proto = ir.serde.serialize_model(model)
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        kept = [note for note in node.metadata_props if note.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return proto.SerializeToString(deterministic=True)


# Operands of several types: an integer tensor and numbers of either kind beside float16.
PROMOTED = [
    lambda x, n: x * n + 2,
    lambda x, n: (n / 3) * x.to(torch.float32),
    lambda x, n: torch.where(n > 0, x, 0.5) ** 2,
    lambda x, n: (x + n.sum(dim=1, keepdim=True)).pow(n.to(torch.float32)) + (x > n).all(),
    lambda x, n: (n.float() + x).transpose(0, 1) * x.shape[0],
]


@pytest.mark.parametrize("compute", PROMOTED)
def test_types_are_promoted_as_ever(
    compute: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _captured(compute)
    monkeypatch.setattr(capturing, "shortcuts", exporter_shortcuts.only_needed_decompositions)
    assert found == _captured(compute)


def _nodes(model: ir.Model) -> Counter[tuple[str, ...]]:
    """Return the nodes and the attributes that they have."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return Counter((node.op_type, *sorted(f"{each}" for each in node.attributes.values())) for node in nodes)


def _traced(stage: str, cache: str, layers: dict[str, Any]) -> Traced:
    config = parse_config({**TINY, **layers}, "test configuration")
    return trace(config, stage, "float16", cache=cache, cache_dtype="int8")


@functools.cache
def _with_shortcuts(stage: str, cache: str) -> tuple[Traced, list[set[Any]]]:
    """Return a trace, and of each program what was decomposed."""
    needed, asked = exporter_shortcuts.to_decompose, []

    def to_decompose(*given: Any) -> set[Any]:
        asked.append(needed(*given))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter_shortcuts, "to_decompose", to_decompose)
        return _traced(stage, cache, LUCID_AND_WINDOW), asked


@pytest.mark.parametrize(("stage", "cache"), [("prefill", "growing"), ("decode", "static")])
def test_our_models_need_no_decomposition_and_their_graphs_are_the_same(
    stage: str, cache: str, fresh_traces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = _with_shortcuts(stage, cache)
    assert asked == [set()], "these have no translation of their own: let the model use others"
    monkeypatch.setattr(exporter_shortcuts, "to_decompose", lambda *_: {"all"})
    decomposed = _traced(stage, cache, LUCID_AND_WINDOW)
    assert _nodes(found.model) == _nodes(decomposed.model)
    assert (found.inputs, found.outputs) == (decomposed.inputs, decomposed.outputs)


@pytest.mark.parametrize(("stage", "layers"), [("prefill", {"num_hidden_layers": 1}), ("decode", LUCID_AND_WINDOW)])
def test_graphs_of_our_models_are_the_same(
    stage: str, layers: dict[str, Any], fresh_traces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first shortcut nodes are named otherwise; the test above looks at that one."""
    found = _with_shortcuts(stage, "static")[0] if layers is LUCID_AND_WINDOW else _traced(stage, "static", layers)
    monkeypatch.setattr(capturing, "shortcuts", exporter_shortcuts.only_needed_decompositions)
    assert _bytes(found.model) == _bytes(_traced(stage, "static", layers).model)


def test_each_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version of PyTorch that is tested here; where its internals have changed, this fails and says so."""
    counts = {"torchlib": 0, "interpreted": 0, "stacks": 0, "dispatcher": 0, "schemas": 0, "code": 0}
    apis = _registration.onnxscript_apis

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    # Reads the library and the schemas, if no test before did.
    _captured(lambda x, n: x.transpose(0, 1) + x.transpose(0, 1))
    monkeypatch.setattr(apis, "get_torchlib_ops", counted("torchlib", apis.get_torchlib_ops))
    interpreter = type_promotion._TypePromotionInterpreter
    call = counted("interpreted", interpreter.call_function)
    monkeypatch.setattr(interpreter, "call_function", call, raising=False)
    stacks = counted("stacks", torch.fx.proxy.CapturedTraceback.extract)
    monkeypatch.setattr(torch.fx.proxy, "CapturedTraceback", SimpleNamespace(extract=stacks))
    dispatcher = torch._export.utils
    monkeypatch.setattr(
        dispatcher, "_materialize_cpp_cia_ops", counted("dispatcher", dispatcher._materialize_cpp_cia_ops)
    )
    read = schemas.OpSignature.from_op_schema
    monkeypatch.setattr(schemas.OpSignature, "from_op_schema", staticmethod(counted("schemas", read)))
    monkeypatch.setattr(torch.fx.Graph, "python_code", counted("code", torch.fx.Graph.python_code))
    _captured(lambda x, n: x.transpose(0, 1) + x.transpose(0, 1))
    few = counts.pop("code")
    assert counts == {"torchlib": 0, "interpreted": 0, "stacks": 0, "dispatcher": 1, "schemas": 0}
    counts["code"] = 0
    monkeypatch.setattr(capturing, "shortcuts", _none)
    _captured(lambda x, n: x.transpose(0, 1) + x.transpose(0, 1))
    assert counts["torchlib"] > 0 and counts["interpreted"] > 0 and counts["stacks"] > 0 and counts["dispatcher"] > 2
    assert counts["schemas"] > 0
    assert counts["code"] >= 3 * few


def test_schemas_of_one_name_are_not_taken_for_each_other() -> None:
    """Nodes with training's diagonal have an attribute that those of a graph before them had not."""
    with_it = operators.schema(PRECONDITION)
    without = operators.schema(dataclasses.replace(PRECONDITION, attributes=PRECONDITION.required))
    with exporter_shortcuts.schemas_read_once():
        found = [schemas.OpSignature.from_op_schema(each) for each in (without, with_it, without)]
    assert [DIAGONAL.name in {parameter.name for parameter in each.params} for each in found] == [False, True, False]


def test_the_library_is_the_same_without_parsing_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    parse, before = converter.Converter.translate_function_signature, values.TracedOnnxFunction.function_ir
    monkeypatch.setattr(
        converter.Converter, "translate_function_signature", lambda *given: parsed.append(given) or parse(*given)
    )
    with exporter_shortcuts.domains_known():
        found, domains = _registration.ONNXRegistry.from_torchlib(), _domains()
        assert not parsed
        other = threading.Thread(target=_domains)
        other.start()
        other.join()
    assert len(parsed) > 300, "another thread's library is read as ever"
    assert values.TracedOnnxFunction.function_ir is before
    monkeypatch.setattr(exporter_shortcuts, "internal", lambda *_: None)
    with exporter_shortcuts.domains_known():  # as with another version of onnxscript
        expected = _registration.ONNXRegistry.from_torchlib()
    assert len(parsed) > 600
    assert list(found.functions) == list(expected.functions)
    for target, functions in found.functions.items():
        assert [vars(each) for each in functions] == [vars(each) for each in expected.functions[target]]
    assert domains == _domains()


def _domains() -> list[tuple[str, str]]:
    return [(meta.qualified_name, meta.domain) for meta in torch_2_5.get_torchlib_ops()]


def test_captures_do_not_share_translations() -> None:
    """A capture's own translations are not in the next one's."""
    with exporter_shortcuts.torchlib_read_once():
        first = _registration.ONNXRegistry.from_torchlib()
        first.register_op(torch.ops.aten.relu.default, lambda x: x)
        second = _registration.ONNXRegistry.from_torchlib()
    name = torch.ops.aten.relu.default.name()
    assert len(first.functions[name]) == len(second.functions[name]) + 1
    assert second.opset_version == first.opset_version


def test_nothing_stays_changed() -> None:
    import torch._dynamo.config as dynamo
    import torch._export.utils as dispatcher
    import torch.fx._lazy_graph_module as lazy
    import torch.fx.config as fx

    def state() -> tuple[Any, ...]:
        interpreter = type_promotion._TypePromotionInterpreter
        registry = _registration.ONNXRegistry
        return (
            torch.export.ExportedProgram.run_decompositions,
            vars(registry)["from_torchlib"],
            interpreter.run_node,
            dynamo.fake_tensor_cache_enabled,
            fx.do_not_emit_stack_traces,
            lazy._get_graph_module_cls,
            dispatcher._materialize_cpp_cia_ops,
            vars(schemas.OpSignature)["from_op_schema"],
        )

    before = state()
    with pytest.raises(KeyboardInterrupt), exporter_shortcuts.shortcuts():
        assert all(now is not old for now, old in zip(state(), before, strict=True))
        raise KeyboardInterrupt
    assert state() == before


INTERNALS = [
    ("torch.onnx._internal.exporter._registration", "ONNXRegistry"),
    ("torch.onnx._internal.fx.passes.type_promotion", "_TypePromotionInterpreter"),
    ("torch.onnx._internal.fx.passes.type_promotion", "get_type_promotion_rule"),
    ("torch.onnx._internal.fx.passes.type_promotion", None),
    ("torch._dynamo.config", None),
    ("torch.fx.config", "do_not_emit_stack_traces"),
    ("torch.fx._lazy_graph_module", "_LazyGraphModule"),
    ("torch.fx._lazy_graph_module", "_get_graph_module_cls"),
    ("torch._export.utils", "_materialize_cpp_cia_ops"),
    ("onnx_ir.schemas", "OpSignature"),
]


@pytest.mark.parametrize(("module", "name"), INTERNALS)
def test_another_version_of_pytorch_goes_its_own_way(
    module: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _captured(PROMOTED[0])
    hide(monkeypatch, module, name)
    assert _captured(PROMOTED[0]) == expected


def test_other_threads_programs_are_decomposed_as_ever() -> None:
    """What an export does to PyTorch's exporter is for its own programs, and ends with it."""
    program = torch.export.export(Module(lambda x, n: (x + n).reshape(-1)), (torch.ones(2, 3), torch.ones(3)))
    before, found = torch.export.ExportedProgram.run_decompositions, []
    with exporter_shortcuts.only_needed_decompositions():
        assert program.run_decompositions({}) is program
        thread = threading.Thread(target=lambda: found.append(program.run_decompositions({}) is program))
        thread.start()
        thread.join()
    assert found == [False]
    assert torch.export.ExportedProgram.run_decompositions is before

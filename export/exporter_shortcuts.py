"""Shortcuts through PyTorch's exporter: what it computes again and again, and what our programs do not need.

They reach into its internals, for the time of one capture and in the capturing thread alone. Where a version of PyTorch
has other internals, it goes its own way, and nothing but time is lost.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from lucid_deploy.export.known_shapes import known_shapes
from lucid_deploy.export.torch_internals import internal
from lucid_deploy.export.torch_operators import plain_operators

if TYPE_CHECKING:
    import torch

_SIGNATURES: dict[tuple[str, int], Any] = {}  # of operators of ONNX, by name and version


@contextmanager
def shortcuts() -> Iterator[None]:
    """Take all of them, in this thread, until the end of the block. Two threads must not do it at the same time."""
    with ExitStack() as stack:
        stack.enter_context(only_needed_decompositions())
        stack.enter_context(torchlib_read_once())
        stack.enter_context(known_values_while_promoting())
        stack.enter_context(no_cache_of_fake_tensors())
        stack.enter_context(no_stack_of_each_node())
        stack.enter_context(code_of_graphs_that_run())
        stack.enter_context(dispatcher_read_once())
        stack.enter_context(schemas_read_once())
        stack.enter_context(known_shapes())
        yield


def to_decompose(program: torch.export.ExportedProgram, table: Collection[Any]) -> set[Any]:
    """Return a program's operators that must be decomposed.

    They are those of the exporter's table, which have no translation; those that write in place; and composite views,
    such as ``flatten``: these have translations that are hardly ever reached, and wrong where a size is 0.
    """
    targets = {node.target for module in _graphs(program) for node in module.graph.nodes if node.op == "call_function"}
    others = targets - plain_operators().keys()
    return {target for target in others if target in table or _writes(target) or _is_composite_view(target)}


def _writes(target: Any) -> bool:
    return hasattr(target, "_schema") and bool(target._schema.is_mutable)


def _is_composite_view(target: Any) -> bool:
    import torch

    if not isinstance(target, torch._ops.OpOverload):
        return False
    shares = any(value.alias_info is not None for value in (*target._schema.arguments, *target._schema.returns))
    return shares and target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _graphs(program: torch.export.ExportedProgram) -> list[torch.fx.GraphModule]:
    import torch

    return [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]


@contextmanager
def only_needed_decompositions() -> Iterator[None]:
    """Leave programs as they are that have nothing to decompose.

    PyTorch's exporter decomposes each program it has captured, which traces all of it twice more: half the time of an
    export.
    """
    import torch

    kind = torch.export.ExportedProgram
    decompose: Callable[..., torch.export.ExportedProgram] = kind.run_decompositions
    thread = threading.get_ident()

    def run_decompositions(
        program: torch.export.ExportedProgram, decomp_table: Any = None, **options: Any
    ) -> torch.export.ExportedProgram:
        if threading.get_ident() != thread or decomp_table is None or to_decompose(program, decomp_table):
            return decompose(program, decomp_table, **options)
        for module in _graphs(program):
            module.graph.eliminate_dead_code()
        return program

    with mock.patch.object(kind, "run_decompositions", run_decompositions):
        yield


@contextmanager
def torchlib_read_once() -> Iterator[None]:
    """Read the sources of onnxscript's translations once per process and opset instead of once per capture."""
    kind = internal("torch.onnx._internal.exporter._registration", "ONNXRegistry")
    if not hasattr(kind, "from_torchlib"):
        yield
        return
    thread, read = threading.get_ident(), kind.from_torchlib

    def from_torchlib(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != thread:
            return read(*arguments, **options)
        known = _torchlib(read, arguments, tuple(sorted(options.items())))
        registry = kind()
        vars(registry).update(vars(known))
        # A capture adds its own translations to these lists.
        registry.functions = {target: list(functions) for target, functions in known.functions.items()}
        return registry

    with mock.patch.object(kind, "from_torchlib", staticmethod(from_torchlib)):
        yield


@functools.cache
def _torchlib(read: Callable[..., Any], arguments: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Any:
    with domains_known():
        return read(*arguments, **dict(options))


@contextmanager
def domains_known() -> Iterator[None]:
    """Give a translation's domain, which is all that is asked of its signature, without parsing its source for it.

    That takes half a second for all of them, five sixths of reading the library.
    """
    kind, name = internal("onnxscript._internal.values", "TracedOnnxFunction"), "function_ir"
    parsed = getattr(kind, name, None)
    if not isinstance(parsed, property) or not hasattr(kind, "opset"):
        yield
        return
    thread = threading.get_ident()

    def function_ir(function: Any) -> Any:
        if threading.get_ident() != thread:
            return parsed.__get__(function)
        return SimpleNamespace(domain=function.opset.domain)

    with mock.patch.object(kind, name, property(function_ir)):
        yield


@contextmanager
def known_values_while_promoting() -> Iterator[None]:
    """Promote operands to a common type without computing every node's shape and type once more.

    The exporter's pass for it interprets the whole program on fake tensors, though each node carries its own from the
    capture. Promoting changes a node's operands, never the type or the shape of its value.
    """
    from torch.fx import Interpreter, Node

    module = "torch.onnx._internal.fx.passes.type_promotion"
    kind, rule_of = internal(module, "_TypePromotionInterpreter"), internal(module, "get_type_promotion_rule")
    if rule_of is None or not hasattr(kind, "_maybe_promote_node"):
        yield
        return
    thread, run = threading.get_ident(), kind.run_node

    def run_node(interpreter: Any, node: Node) -> Any:
        if threading.get_ident() != thread:
            return run(interpreter, node)
        with interpreter._set_current_node(node):
            if rule := rule_of(node, interpreter.type_promotion_table):
                interpreter._maybe_promote_node(node, rule)
        if node.op == "call_function" and "val" in node.meta:
            return node.meta["val"]
        return Interpreter.run_node(interpreter, node)

    with mock.patch.object(kind, "run_node", run_node):
        yield


@contextmanager
def no_cache_of_fake_tensors() -> Iterator[None]:
    """Compute shapes and types of each operator's value afresh.

    PyTorch remembers them by operator and operands. With symbolic sizes, looking there and making a tensor of what is
    found costs more than the computation: capturing without is a third faster.
    """
    config, name = internal("torch._dynamo.config"), "fake_tensor_cache_enabled"
    if not hasattr(config, name):
        yield
        return
    with config.patch(name, False):
        yield


@contextmanager
def no_stack_of_each_node() -> Iterator[None]:
    """Don't look up which lines of Python made each node: an artifact's graphs name none."""
    config, name = internal("torch.fx.config"), "do_not_emit_stack_traces"
    if not hasattr(config, name):
        yield
        return
    with mock.patch.object(config, name, True):
        yield


@contextmanager
def code_of_graphs_that_run() -> Iterator[None]:
    """Write a captured graph's Python code when something runs it, which nothing does.

    PyTorch writes and compiles it again after each of its passes, a twentieth of an export. Its own lazy modules wait.
    """
    module, name = internal("torch.fx._lazy_graph_module"), "_get_graph_module_cls"
    lazy = getattr(module, "_LazyGraphModule", None)
    if lazy is None or not hasattr(module, name):
        yield
        return
    thread, kind_of_others = threading.get_ident(), getattr(module, name)

    def kind() -> type[torch.fx.GraphModule]:
        return lazy if threading.get_ident() == thread else kind_of_others()

    with mock.patch.object(module, name, kind):
        yield


@contextmanager
def dispatcher_read_once() -> Iterator[None]:
    """List the dispatcher's composite operators once per capture; PyTorch does it for each namespace, twice."""
    module, name = internal("torch._export.utils"), "_materialize_cpp_cia_ops"
    if not hasattr(module, name):
        yield
        return
    thread, read = threading.get_ident(), getattr(module, name)
    read_once = functools.cache(read)

    def materialize() -> None:
        return read_once() if threading.get_ident() == thread else read()

    with mock.patch.object(module, name, materialize):
        yield


@contextmanager
def schemas_read_once() -> Iterator[None]:
    """Read the schema of each operator of ONNX once per process instead of for each node.

    Ours are read each time: an operator has a schema for graphs with its optional attribute and one for those without.
    """
    kind = internal("onnx_ir.schemas", "OpSignature")
    if not hasattr(kind, "from_op_schema"):
        yield
        return
    thread, read = threading.get_ident(), kind.from_op_schema

    def from_op_schema(schema: Any) -> Any:
        if threading.get_ident() != thread or schema.domain:
            return read(schema)
        key = schema.name, schema.since_version
        if key not in _SIGNATURES:
            _SIGNATURES[key] = read(schema)
        return _SIGNATURES[key]

    with mock.patch.object(kind, "from_op_schema", staticmethod(from_op_schema)):
        yield

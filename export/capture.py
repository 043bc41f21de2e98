"""Capture a PyTorch module as an ONNX graph."""

from __future__ import annotations

import functools
import logging
import operator as operator_module
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from lucid_deploy.export.operators import OPSET, translation_table

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_QUIET = {"torch.onnx": logging.ERROR, "torch._dynamo.metrics_context": logging.CRITICAL}  # levels during a capture
_ONE_CAPTURE = threading.Lock()  # tracing changes state of the whole process: PyTorch's, warning filters, loggers


def capture(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    axes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    """Trace a module into an ONNX graph. One thread traces at a time; others wait.

    Args:
        module: What to capture.
        arguments: Its example arguments, on the meta device.
        axes: The arguments' dynamic axes, in the format of ``dynamic_shapes`` of ``torch.export.export``.
        inputs: Names for the graph's inputs.
        outputs: Names for the graph's outputs.
    """
    import torch

    with (
        _ONE_CAPTURE,
        warnings.catch_warnings(),
        _quiet_logging(),
        torch.no_grad(),  # else a module that turns gradients off is traced as a subgraph
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined] # sizes may be 0
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),  # with symbolic sizes it costs more than it saves
    ):
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own, about pytree
        warnings.simplefilter("ignore", DeprecationWarning)
        captured = torch.export.export(module, arguments, dynamic_shapes=axes, strict=False)
        _write_out_of_place(captured)
        model = _translated(captured)
    for value, name in zip((*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    return model


def _translated(program: torch.export.ExportedProgram) -> ir.Model:
    """Translate a program as ``torch.onnx.export`` does, without the steps that take most of its time there.

    ``torch.onnx.export`` parses all translations for each graph, decomposes each program, which traces it again, and
    computes each node once more to insert casts. Here translations are parsed once per process, and the rest is done
    only where operators must be decomposed or cast: not in our layers, perhaps in transformers' or other packages'.
    """
    from onnxscript.version_converter import convert_version
    from torch.onnx._internal.exporter import _core, _fx_passes
    from torch.onnx._internal.fx.passes import InsertTypePromotion

    registry, table = _translations()
    if any(_must_decompose(operator, table) for operator in _operators(program)):
        program = program.run_decompositions(table)
    for module in _graph_modules(program):
        module.graph.eliminate_dead_code()
        if any(_must_cast(node) for node in module.graph.nodes):
            InsertTypePromotion(module).run()
    _fx_passes.remove_assertion_nodes(program.graph_module)
    model = _core._exported_program_to_onnx_program(program, registry=registry).model
    convert_version(model, OPSET, fallback=True)
    return model


@functools.cache
def _translations() -> tuple[Any, dict[Any, Any]]:
    """Return the exporter's translations and ours, and the decompositions of operators without a translation."""
    from torch.onnx._internal.exporter import _decomp
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    registry = ONNXRegistry.from_torchlib(opset_version=OPSET)
    for operator, translation in {**translation_table(), **_plain_translations()}.items():
        registry.register_op(operator, translation)
    translated = set(_decomp.get_onnx_implemented_overloads(registry))
    return registry, _decomp.create_onnx_friendly_decomposition_table(translated)


def _must_cast(node: torch.fx.Node) -> bool:
    """Whether a node computes in another type than one of its input tensors has, as a float times an integer does."""
    import torch
    from torch.onnx._internal.fx.passes.type_promotion import get_type_promotion_rule

    rule = get_type_promotion_rule(node, _promotions())
    if rule is None:
        return False
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda given: given.meta["val"])
    types = rule.preview_type_promotion(args, kwargs)
    pairs = [(args[place], kind) for place, kind in types.args_dtypes.items()]
    pairs += [(kwargs[name], kind) for name, kind in types.kwargs_dtypes.items()]
    flat = [(value, kind) for given, kind in pairs for value in torch.utils._pytree.tree_leaves(given)]
    return any(isinstance(value, torch.Tensor) and value.dtype != kind for value, kind in flat)


@functools.cache
def _promotions() -> Any:
    from torch.onnx._internal.fx.passes.type_promotion import TypePromotionTable

    return TypePromotionTable()


def _write_out_of_place(program: torch.export.ExportedProgram) -> None:
    """Replace in-place operators such as ``x /= y`` by those that return a new tensor, where ``x`` shares no memory."""
    for module in _graph_modules(program):
        places = {node: place for place, node in enumerate(module.graph.nodes)}
        for node in places:
            functional, written = _functional(node.target), node.args[0] if node.args else None
            if functional is None or written is None or _shares_memory(written):
                continue
            node.target = functional
            for user in list(written.users):
                if places[user] > places[node]:
                    user.replace_input_with(written, node)


def _functional(operator: Any) -> Any:
    """Return the operator that computes the same as an in-place one and returns a new tensor; None if there is none."""
    import torch

    if not isinstance(operator, torch._ops.OpOverload) or not operator._schema.is_mutable:
        return None
    name = operator._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name == "copy_":
        return None
    return getattr(getattr(torch.ops.aten, name[:-1], None), operator._overloadname, None)


def _shares_memory(node: torch.fx.Node) -> bool:
    """Whether a tensor is an input, a view of another one, or has views."""
    import torch

    def is_view(node: torch.fx.Node) -> bool:
        operator = node.target
        if not isinstance(operator, torch._ops.OpOverload) or operator._schema.is_mutable:
            return False
        return any(value.alias_info for value in operator._schema.returns)

    maker = node.all_input_nodes[0] if node.target is operator_module.getitem else node
    return node.op != "call_function" or maker.op != "call_function" or any(map(is_view, (maker, *node.users)))


def _must_decompose(operator: Any, table: Collection[Any]) -> bool:
    """Say whether an operator has no translation, writes in place, or is a composite view such as ``flatten``.

    ``torch.onnx.export`` decomposes such views first, so their translations are little used, and wrong for a size of 0.
    """
    import torch

    if operator in _plain_translations():
        return False
    if operator in table or not isinstance(operator, torch._ops.OpOverload):
        return operator in table
    schema = operator._schema
    is_view = any(value.alias_info is not None for value in (*schema.arguments, *schema.returns))
    is_composite = operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return bool(schema.is_mutable) or (is_view and is_composite)


def _operators(program: torch.export.ExportedProgram) -> set[Any]:
    nodes = (node for module in _graph_modules(program) for node in module.graph.nodes)
    return {node.target for node in nodes if node.op == "call_function"}


def _graph_modules(program: torch.export.ExportedProgram) -> list[torch.fx.GraphModule]:
    import torch

    return [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]


@functools.cache
def _plain_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return translations of common operators that would otherwise be decomposed, which costs a second trace."""
    import torch
    from onnxscript import opset18 as op  # the opset of the exporter's translations; later ones have newer attributes
    from onnxscript.onnx_types import INT64

    # The exporter reads these signatures.
    def to_dtype(self, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: str = ""):  # type: ignore[no-untyped-def]
        return op.Cast(self, to=dtype)

    def to_device(  # type: ignore[no-untyped-def]
        self, device: str, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: str = ""
    ):
        return op.Cast(self, to=dtype)

    def to_layout(  # type: ignore[no-untyped-def]
        self,
        dtype: int,
        layout: str = "",
        device: str = "",
        pin_memory: bool = False,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: str = "",
    ):
        return op.Cast(self, to=dtype)

    def reshape(self, shape: Sequence[INT64]):  # type: ignore[no-untyped-def]
        def sizes() -> Any:
            for size in shape:
                if isinstance(size, int):
                    yield op.Constant(value_ints=[size])
                else:
                    yield op.Reshape(size, cast(INT64, op.Constant(value_ints=[-1])))

        # In the exporter's own translation, which lacks allowzero, a size of 0 stands for the input's size.
        return op.Reshape(self, op.Concat(*sizes(), axis=0), allowzero=True)

    def contiguous(self, memory_format: str = ""):  # type: ignore[no-untyped-def]
        return op.Identity(self)

    def chunk(self, chunks: int, dim: int = 0):  # type: ignore[no-untyped-def]
        size = self.shape[dim]
        if not isinstance(size, int) or size % chunks:  # PyTorch then returns parts of other sizes, or fewer
            raise NotImplementedError(f"chunks of unequal size: {size} in {chunks}")
        return op.Split(self, axis=dim, num_outputs=chunks)

    aten = torch.ops.aten
    return {
        aten.to.dtype: to_dtype,
        aten.to.device: to_device,
        aten.to.dtype_layout: to_layout,  # what x.to(other.device) becomes
        aten.reshape.default: reshape,
        aten.contiguous.default: contiguous,
        aten.chunk.default: chunk,
    }


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence two loggers of PyTorch: one says torchvision is not installed, one that logging metrics failed.

    Where memory runs out, the latter would log a whole traceback beside the error that ends the export anyway.
    """
    loggers = {logging.getLogger(name): level for name, level in _QUIET.items()}
    before = [logger.level for logger in loggers]
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

"""Capture a PyTorch module as an ONNX graph, where possible without tracing it once more to decompose its operators."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from lucid_deploy.export.operators import OPSET, translation_table
from lucid_deploy.export.torch_operators import plain_operators

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_ONE_CAPTURE = threading.Lock()  # PyTorch's tracer works on state of the process, and so does what we do to it


def capture(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    axes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    """Return the graph of a module.

    Args:
        module: What to capture.
        arguments: Its example arguments, on the meta device.
        axes: Their dynamic axes, as ``torch.onnx.export`` takes them.
        inputs: Names for the graph's inputs.
        outputs: Names for the graph's outputs.
    """
    import torch

    with warnings.catch_warnings(), _quiet_logging(), only_needed_decompositions():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own, about pytree
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=axes,
            custom_translation_table={**translation_table(), **plain_operators()},
        )
    assert program is not None
    return program.model


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


@contextlib.contextmanager
def only_needed_decompositions() -> Iterator[None]:
    """Leave programs as they are that have nothing to decompose.

    PyTorch's exporter decomposes each program it has captured, which traces all of it twice more: half the time of an
    export. Where a version of PyTorch goes another way, it goes it here too, and nothing is gained.
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

    with _ONE_CAPTURE, mock.patch.object(kind, "run_decompositions", run_decompositions):
        yield


class _quiet_logging:
    """Silences the exporter's remark that torchvision is not installed; warnings of a real fault are errors there."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("torch.onnx")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)

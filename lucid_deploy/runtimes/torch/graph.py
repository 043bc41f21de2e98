"""Run one ONNX graph: PyTorch computes the ``ai.lucid`` operators, ONNX's ReferenceEvaluator the standard ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins import table
from lucid_deploy.runtimes.evaluated_graph import Graph, evaluated_graph
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.torch.threads import torch_threads

if TYPE_CHECKING:
    import onnx
    import torch

Array = np.ndarray[Any, np.dtype[Any]]


def open_torch_graph(model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
    """Return a function that runs a graph with PyTorch's operators."""
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise LucidError("PyTorch sees no CUDA device; run with --device cpu, or install a CUDA build of PyTorch.")
    graph = evaluated_graph(model, _operators(options.device))

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        with torch_threads(options.threads), torch.inference_mode():
            return graph(feed)

    return run


def _operators(device: str) -> dict[str, Callable[..., tuple[Array, ...]]]:
    from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
    from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
    from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
    from lucid_deploy.plugins.hosts.triton import torch_kernels  # noqa: F401 (registers them for GPUs)
    from lucid_deploy.plugins.precondition.torch_operator import precondition
    from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row

    def solve(*tensors: torch.Tensor, epsilon: float, diagonal: float = 0.0) -> torch.Tensor:
        return precondition(*tensors, eps=epsilon, training_diagonal=_training(diagonal))

    def decode(*tensors: torch.Tensor, epsilon: float, diagonal: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        return decode_attention(*tensors, eps=epsilon, training_diagonal=_training(diagonal))

    operators: dict[str, Callable[..., Any]] = {
        table.PRECONDITION.name: solve,
        table.CAUSAL_ATTENTION.name: causal_attention,
        table.DECODE_ATTENTION.name: decode,
        table.DELTA_RULE.name: delta_rule,
        table.SCATTER_ROW.name: scatter_row,
    }
    return {name: _with_arrays(compute, device) for name, compute in operators.items()}


def _training(diagonal: float) -> bool:
    if diagonal not in (0, 1):
        raise LucidError(f"The attribute diagonal must be 0 or 1, not {diagonal:g}.")
    return diagonal == 1


def _with_arrays(compute: Callable[..., Any], device: str) -> Callable[..., tuple[Array, ...]]:
    """Wrap an operator to take and return NumPy arrays, whose bfloat16 is a type of the package ml_dtypes."""

    def run(*inputs: Array, **attributes: float) -> tuple[Array, ...]:
        outputs = compute(*(_tensor(array, device) for array in inputs), **attributes)
        return tuple(map(_array, outputs if isinstance(outputs, tuple) else (outputs,)))

    return run


def _tensor(array: Array, device: str) -> torch.Tensor:
    import torch

    array = np.array(array, order="C")  # a copy, which PyTorch may write to
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def _array(tensor: torch.Tensor) -> Array:
    import onnx
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(
            tensor.view(torch.int16).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
        )
    return np.asarray(tensor.numpy())

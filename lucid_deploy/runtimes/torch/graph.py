"""One graph in ONNX's ReferenceEvaluator, with operators of ``ai.lucid`` computed by PyTorch or other functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins import table
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.runtime import Graph

if TYPE_CHECKING:
    import onnx
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
Operators = Mapping[str, Callable[..., tuple[Array, ...]]]


def open_torch_graph(model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
    """Return a function that runs a graph with PyTorch's operators."""
    import torch

    from lucid_deploy.runtimes.torch.threads import torch_threads

    graph = evaluated_graph(model, _operators(options.device))

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        with torch_threads(options.threads), torch.inference_mode():
            return graph(feed)

    return run


def evaluated_graph(model: onnx.ModelProto, operators: Operators) -> Graph:
    """Return a function that runs a graph in ONNX's ReferenceEvaluator with given operators of ``ai.lucid``."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model, new_ops=[_node_class(*item) for item in operators.items()])
    names = [output.name for output in model.graph.output]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, evaluator.run(None, dict(feed)), strict=True))

    return run


def _node_class(name: str, compute: Callable[..., tuple[Array, ...]]) -> type:
    from onnx.reference.op_run import OpRun

    def run(_self: Any, *inputs: Array, **attributes: Any) -> tuple[Array, ...]:
        return compute(*inputs, **attributes)

    return type(name, (OpRun,), {"op_domain": table.DOMAIN, "_run": run})


def _operators(device: str) -> Operators:
    from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
    from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
    from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
    from lucid_deploy.plugins.expert_matmul.reference import dequantized_experts
    from lucid_deploy.plugins.expert_matmul.torch_operator import expert_matmul
    from lucid_deploy.plugins.hosts.triton import torch_kernels  # noqa: F401 (registers them for GPUs)
    from lucid_deploy.plugins.precondition.torch_operator import precondition
    from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row

    def solve(*tensors: torch.Tensor, epsilon: float, diagonal: float = 0.0) -> torch.Tensor:
        return precondition(*tensors, eps=epsilon, training_diagonal=_training(diagonal))

    def decode(*tensors: torch.Tensor, epsilon: float, diagonal: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        return decode_attention(*tensors, eps=epsilon, training_diagonal=_training(diagonal))

    def quantized(x: torch.Tensor, expert: torch.Tensor, w: torch.Tensor, scales: torch.Tensor) -> Any:
        chosen, place = expert.unique(return_inverse=True)
        return expert_matmul(x, place, dequantized_experts(w[chosen], scales[chosen], x.shape[1]))

    operators: dict[str, Callable[..., Any]] = {
        table.PRECONDITION.name: solve,
        table.CAUSAL_ATTENTION.name: causal_attention,
        table.DECODE_ATTENTION.name: decode,
        table.DELTA_RULE.name: delta_rule,
        table.EXPERT_MATMUL.name: expert_matmul,
        table.QUANTIZED_EXPERT_MATMUL.name: quantized,
        table.SCATTER_ROW.name: scatter_row,
    }
    return {name: _with_arrays(compute, device) for name, compute in operators.items()}


def _training(diagonal: float) -> bool:
    if diagonal not in (0, 1):
        raise LucidError(f"The attribute diagonal must be 0 or 1, not {diagonal:g}.")
    return diagonal == 1


def _with_arrays(compute: Callable[..., Any], device: str) -> Callable[..., tuple[Array, ...]]:
    """Wrap a function of tensors as one of numpy arrays; bfloat16 is a type of ml_dtypes there."""

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

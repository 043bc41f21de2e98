"""Sessions of one operator that run the library's kernels, and inputs with correlated keys."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from lucid_deploy.errors import LucidError
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import DIAGONAL, DOMAIN, EPSILON, SCALE, VERSION, Operator
from lucid_deploy.plugins.table import Tensor as Parameter

INSTRUCTIONS = ("avx512", "avx2", "portable")
FACTOR = 3  # of the error of the dense float32 path; both against float64
FLOOR = {"float32": 2e-7, "float16": 5e-4}  # a unit in the last place, where the dense path happens to be exact


def runnable(library: Path) -> list[str]:
    """Return the kernels that this processor can run; afterwards the last of them is selected."""
    found = []
    for name in INSTRUCTIONS:
        try:
            found.append(kernels_name(library, name))
        except LucidError:
            continue
    return found


@functools.lru_cache(maxsize=None, typed=True)  # 1 is not 1.0 to a graph
def session(
    operator: Operator,
    library: Path,
    threads: int = 2,
    dtype: str = "float32",
    diagonal: float | None = None,
    rank: int | None = None,
    scales: str = "",
) -> ort.InferenceSession:
    """Return a session of one node for tensors in ``dtype``.

    The node has the attribute ``diagonal`` if given. Tensors with any number of axes before the last have ``rank``;
    scales and offsets of a weight are in the type ``scales`` if given.
    """
    make = onnx.helper

    def info(item: Parameter) -> onnx.ValueInfoProto:
        own = scales if scales and item.name in ("scales", "offsets") else dtype
        kind = make.np_dtype_to_tensor_dtype(np.dtype(own if item.type == "T" else item.type))
        count = rank if rank is not None and "…" in item.shape else item.shape.count(",") + 1
        axes = [f"{item.name}_{axis}" for axis in range(count)]
        return make.make_tensor_value_info(item.name, kind, axes)

    values = {EPSILON: 1e-5, SCALE: 0.25}
    attributes = {attribute.name: values[attribute] for attribute in operator.required}
    if diagonal is not None:
        attributes[DIAGONAL.name] = diagonal
    node = make.make_node(operator.name, operator.input_names, operator.output_names, domain=DOMAIN, **attributes)
    graph = make.make_graph([node], operator.name, [*map(info, operator.inputs)], [*map(info, operator.outputs)])
    opsets = [make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(library))
    model = make.make_model(graph, opset_imports=opsets, ir_version=10)  # no function: only the library can run it
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attention_problem(tokens, past, width, groups, correlation=0.9, batch=1, heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens + past + width + groups)
    k = keys(generator, batch, heads, past + tokens, width, correlation).to(dtype)
    y = torch.randn(batch, heads, past + tokens, width, generator=generator).to(dtype)
    q = 2 * torch.randn(batch, heads * groups, tokens, width, generator=generator).to(dtype)
    return q, k, y


def run(of: ort.InferenceSession, *tensors: Tensor) -> list[Tensor]:
    feed = {item.name: x.contiguous().numpy() for item, x in zip(of.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(out) for out in of.run(None, feed)]


def keys(generator: torch.Generator, batch: int, heads: int, tokens: int, width: int, correlation: float) -> Tensor:
    """Return keys with this correlation between any two; 1.0 repeats four keys."""
    if correlation == 1.0:
        few = torch.randn(batch, heads, 4, width, generator=generator)
        return few[:, :, torch.arange(tokens) % 4]
    common = torch.randn(width, generator=generator)
    own = torch.randn(batch, heads, tokens, width, generator=generator)
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def error(got: Tensor, exact: Tensor) -> float:
    assert got.isfinite().all()
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def check(got: Tensor, dense: Tensor, exact: Tensor, dtype: str = "float32") -> None:
    """Check that a result's error is at most FACTOR times that of the dense float32 path."""
    assert got.shape == exact.shape
    found, gate = error(got, exact), FACTOR * max(error(dense, exact), FLOOR[dtype])
    assert found <= gate, f"{found:.2e} is over {gate:.2e}"


def poison(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return a copy with NaN in the rows ``(B, T)`` that hold no token."""
    return tensor.masked_fill(~mask[:, None, :, None], np.nan)

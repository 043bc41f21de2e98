"""Sessions of one operator that its ONNX body computes, and inputs for them."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import torch

from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.table import DIAGONAL, DOMAIN, EPSILON, VERSION, Operator, Tensor

H, G, D = 2, 3, 20
TYPES = {"float32": (onnx.TensorProto.FLOAT, np.float32), "float16": (onnx.TensorProto.FLOAT16, np.float16)}


def operator_model(
    operator: Operator, dtype: str = "float32", training: bool = False, several: bool = False
) -> onnx.ModelProto:
    """Return one node of the domain with its body, with training's diagonal or 1; see ``function_proto``."""
    make, element = onnx.helper, TYPES[dtype][0]
    attributes = ({EPSILON.name: 1e-5} if operator.attributes else {}) | ({DIAGONAL.name: 1.0} if training else {})

    def info(item: Tensor) -> onnx.ValueInfoProto:
        kind = element if item.type == "T" else make.np_dtype_to_tensor_dtype(np.dtype(item.type))
        axes = ["b", "t"] if item.name == "mask" else ["b", *(f"{item.name}_{axis}" for axis in "hnd")]
        return make.make_tensor_value_info(item.name, kind, axes)

    outs = [make.make_tensor_value_info(item, element, ["b", "h", "n", "d"]) for item in operator.output_names]
    node = make.make_node(operator.name, operator.input_names, operator.output_names, domain=DOMAIN, **attributes)
    model = make.make_model(
        make.make_graph([node], operator.name, [*map(info, operator.inputs)], outs),
        functions=[function_proto(operator.name, training_diagonal=training, several=several)],
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def single_operator(
    operator: Operator, dtype: str = "float32", training: bool = False, several: bool = False
) -> ort.InferenceSession:
    """Return a session of :func:`operator_model`."""
    return session_of(operator_model(operator, dtype, training, several))


def inputs(tokens: int, correlation: float, padded: bool, dtype: str):
    generator = torch.Generator().manual_seed(tokens)
    common = torch.randn(D, generator=generator)
    k = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * torch.randn(2, H, tokens, D, generator=generator)
    v = torch.randn(2, H, tokens, D, generator=generator)
    q = torch.randn(2, H * G, tokens, D, generator=generator)
    mask = torch.ones(2, tokens, dtype=torch.bool)
    if padded:
        mask[0, : tokens // 3] = False
        mask[1, tokens - tokens // 4 :] = False
    kind = getattr(torch, dtype)
    return q.to(kind), k.to(kind), v.to(kind), mask


def run(session, **feed: torch.Tensor):
    return [torch.from_numpy(out) for out in session.run(None, {name: x.numpy().copy() for name, x in feed.items()})]


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    assert got.isfinite().all()
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-30))

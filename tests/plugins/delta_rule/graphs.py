"""One node of the delta rule as a graph with its body, and running it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.table import DELTA_RULE, DOMAIN, SCALE, VERSION
from tests.plugins.delta_rule.problems import Inputs

ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def one_node(dtype: str = "float32", scale: float = 0.25, one_token: bool = False) -> onnx.ModelProto:
    """Return a graph of one node, whose axes are free but for the one token."""

    def info(item):  # type: ignore[no-untyped-def]
        axes = [f"{item.name}_{place}" for place in range(len(item.shape.split(",")))]
        return helper.make_tensor_value_info(item.name, ELEMENTS[dtype if item.type == "T" else item.type], axes)

    names = DELTA_RULE.input_names, DELTA_RULE.output_names
    node = helper.make_node(DELTA_RULE.name, *names, domain=DOMAIN, **{SCALE.name: scale})
    infos = [info(item) for item in DELTA_RULE.inputs], [info(item) for item in DELTA_RULE.outputs]
    model = helper.make_model(
        helper.make_graph([node], "delta", *infos),
        functions=[function_proto(DELTA_RULE.name, one_token=one_token)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def feed(given: Inputs) -> dict[str, np.ndarray]:
    return {name: each.numpy() for name, each in zip(DELTA_RULE.input_names, given, strict=True)}


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(of: ort.InferenceSession, given: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    output, state = of.run(None, feed(given))
    return torch.from_numpy(output), torch.from_numpy(state)

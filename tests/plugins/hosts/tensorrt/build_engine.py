"""Build an engine from an ONNX file that uses all three operators; run by test_tensorrt.py in a process of its own.

A parser or plugin that ends the process must not end the test run. Prints one JSON object.
"""

import json
import sys
from pathlib import Path

import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper

from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins

OPERATORS = ("Precondition", "DecodeAttention", "DeltaRule")
HEADS, GROUPS = 2, 2
BATCH, TOKENS = (1, 1, 2), (1, 64, 512)
PAST = (0, 64, 512)  # an empty past is in the profile


def model(dtype: int, width: int) -> onnx.ModelProto:
    queries = ["b", HEADS * GROUPS, 1, width]
    new, one = ["b", HEADS, "n", width], ["b", HEADS, 1, width]
    past, cache = ["b", HEADS, "p", width], ["b", HEADS, "c", width]
    inputs = {"k": new, "v": new, "k_past": past, "y_past": past, "q": queries, "k_new": one, "v_new": one}
    inputs |= {"k_cache": cache, "y_cache": cache, "value": ["b", HEADS, "n", 2 * width], "beta": ["b", HEADS, "n"]}
    float32 = {"log_decay": ["b", HEADS, "n"], "state": ["b", HEADS, width, 2 * width]}
    values = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()]
    values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in float32.items()]
    masks = [helper.make_tensor_value_info(name, TensorProto.BOOL, ["b", axis]) for name, axis in MASKS.items()]
    outputs = {"y": new, "o": queries, "y_new": one}
    solve = (["k", "v", "k_past", "y_past", "mask"], ["y"])
    decode = (["q", "k_new", "v_new", "k_cache", "y_cache", "decode_mask"], ["o", "y_new"])
    delta = (["k", "v", "value", "log_decay", "beta", "state"], ["output", "new_state"])
    nodes = [
        helper.make_node("Precondition", *solve, name="solve", domain="ai.lucid", epsilon=1e-5, diagonal=1.0),
        helper.make_node("DecodeAttention", *decode, name="decode", domain="ai.lucid", epsilon=1e-5),
        helper.make_node("DeltaRule", *delta, name="delta", domain="ai.lucid", scale=0.5),
    ]
    outputs["output"] = inputs["value"]
    results = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()]
    results.append(helper.make_tensor_value_info("new_state", TensorProto.FLOAT, float32["state"]))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("ai.lucid", 1)]
    return helper.make_model(helper.make_graph(nodes, "graph", values + masks, results), opset_imports=opsets)


MASKS = {"mask": "t", "decode_mask": "u"}
RANGES = {
    "b": BATCH,
    "n": TOKENS,
    "p": PAST,
    "c": PAST,
    "t": tuple(n + p for n, p in zip(TOKENS, PAST, strict=True)),
    "u": tuple(p + 1 for p in PAST),
}


class Logger(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


def main(library: str, dtype: str, width: str) -> None:
    logger = Logger()
    builder = trt.Builder(logger)
    register_plugins(Path(library), trt)
    register_plugins(Path(library), trt)  # the second time must be harmless
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    graph = model(getattr(TensorProto, dtype), int(width))
    parsed = parser.parse(graph.SerializeToString())
    profile = builder.create_optimization_profile()
    for value in graph.graph.input:
        shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        profile.set_shape(value.name, *([RANGES.get(dim, (dim,) * 3)[i] for dim in shape] for i in range(3)))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    layers = {network.get_layer(i).name: str(network.get_layer(i).type) for i in range(network.num_layers)}
    engine = builder.build_serialized_network(network, config) if parsed else None
    content = b"" if engine is None else bytes(engine)
    size, stored = len(content), [name for name in OPERATORS if name.encode() in content]
    result = {"layers": layers, "engine": size, "stored": stored, "errors": logger.errors}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

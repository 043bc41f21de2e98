"""The tiny model as graphs: prefill, decode, and decode over buffers; inputs and outputs have an artifact's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lucid_deploy.conformance.formulas import Array
from lucid_deploy.conformance.graphs import operator_node, whole_model
from lucid_deploy.conformance.problems import EPSILON, NUMPY
from lucid_deploy.conformance.tiny_model import LAYERS, VOCABULARY, TinyModel
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import Operator

STAGES = ("prefill", "decode", "decode_static")


def tiny_graph(model: TinyModel, weights: Mapping[str, Array], stage: str, dtype: str) -> onnx.ModelProto:
    """Return the graph of one stage of the model.

    Args:
        model: The model's shape.
        weights: See :meth:`TinyModel.weights`.
        stage: One of :data:`STAGES`.
        dtype: Type of weights, arithmetic and cache; rotation angles, the head and the logits are float32.
    """
    build = _Builder(model, stage, dtype)
    for name, array in weights.items():
        build.constant(name, array if name in ("head", "frequencies") else array.astype(NUMPY[dtype]))
    x = build.add("Gather", "embedding", "input_ids")
    for layer in range(LAYERS):
        x = build.layer(layer, x)
    build.add("MatMul", build.add("Cast", build.norm(x, "norm"), to=onnx.TensorProto.FLOAT), "head", out="logits")
    used = (table.DECODE_ATTENTION, table.SCATTER_ROW) if stage != "prefill" else ()
    operators = list(used) or [table.PRECONDITION, table.CAUSAL_ATTENTION]
    if stage == "decode":
        operators.remove(table.SCATTER_ROW)
    graph = helper.make_graph(build.nodes, stage, build.inputs(), build.outputs(), list(build.constants.values()))
    return whole_model(graph, operators)


class _Builder:
    """Collects the nodes and constants of a graph."""

    def __init__(self, model: TinyModel, stage: str, dtype: str) -> None:
        self.model, self.stage = model, stage
        self.element = helper.np_dtype_to_tensor_dtype(NUMPY[dtype])
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.mask = self.add("Cast", "attention_mask", to=onnx.TensorProto.BOOL)
        if stage == "decode_static":
            length = self.add("Unsqueeze", "cache_length", self.constant("one", np.array([1])))
            zero, step = self.constant("zero", np.array(0)), self.constant("step", np.array(1))
            room = self.add("Squeeze", self.add("Shape", "attention_mask", start=1, end=2))
            within = self.add("Less", self.add("Range", zero, room, step), length)
            true = self.add("Equal", length, length)
            self.mask = self.add("Concat", self.add("And", within, self.mask), true, axis=1)

    def constant(self, name: str, array: Array) -> str:
        """Add an initializer, in place of one of the same name; return the name."""
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        out = out or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def ours(self, operator: Operator, *inputs: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """Add a node of one of our operators; return its outputs' names."""
        self.nodes.append(operator_node(operator, inputs, outputs))
        return outputs

    def norm(self, x: str, weight: str) -> str:
        """Add an RMS norm; return its output's name."""
        return self.add("RMSNormalization", x, weight, axis=-1, epsilon=EPSILON)

    def layer(self, layer: int, x: str) -> str:
        """Add a layer; return its output's name."""
        h = self.norm(x, f"{layer}.norm")
        q, k, v = (self.heads(self.add("MatMul", h, f"{layer}.{name}")) for name in ("query", "key", "value"))
        if self.model.rope:
            q, k = self.rotated(q), self.rotated(k)
        rows = self.add("Transpose", self.attention(layer, q, k, v), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", rows, self.constant("joined", np.array([0, 0, -1])))
        x = self.add("Add", x, self.add("MatMul", joined, f"{layer}.out"))
        h = self.norm(x, f"{layer}.mlp_norm")
        gate = self.add("MatMul", h, f"{layer}.gate")
        gate = self.add("Mul", gate, self.add("Sigmoid", gate))
        both = self.add("Mul", gate, self.add("MatMul", h, f"{layer}.up"))
        return self.add("Add", x, self.add("MatMul", both, f"{layer}.down"))

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Add a layer's attention and the outputs of its cache; return the name of the heads' outputs."""
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        out, y = f"O_{layer}", f"Y_{layer}"
        if self.stage == "prefill":
            self.ours(table.PRECONDITION, k, v, *past, self.mask, outputs=(y,))
        else:
            self.ours(table.DECODE_ATTENTION, q, k, v, *past, self.mask, outputs=(out, y))
        for before, new, after in zip(past, (k, y), present, strict=True):
            if self.stage == "decode_static":
                self.ours(table.SCATTER_ROW, before, new, "cache_length", outputs=(after,))
            else:
                self.add("Concat", before, new, out=after, axis=2)
        if self.stage == "prefill":
            self.ours(table.CAUSAL_ATTENTION, q, *present, self.mask, outputs=(out,))
        return out

    def heads(self, x: str) -> str:
        """Add nodes that split a projection into heads ``(B, heads, N, D)``; return the output's name."""
        split = self.add("Reshape", x, self.constant("split", np.array([0, 0, -1, self.model.width])))
        return self.add("Transpose", split, perm=[0, 2, 1, 3])

    def rotated(self, x: str) -> str:
        """Add nodes that rotate a tensor by its tokens' positions; return the output's name."""
        axes = self.constant("axes", np.array([1, 3]))
        positions = self.add("Unsqueeze", self.add("Cast", "position_ids", to=onnx.TensorProto.FLOAT), axes)
        angle = self.add("Mul", positions, "frequencies")
        cos, sin = (self.add("Cast", self.add(kind, angle), to=self.element) for kind in ("Cos", "Sin"))
        first, second = f"{x}_first", f"{x}_second"
        self.nodes.append(helper.make_node("Split", [x], [first, second], axis=3, num_outputs=2))
        left = self.add("Sub", self.add("Mul", first, cos), self.add("Mul", second, sin))
        right = self.add("Add", self.add("Mul", second, cos), self.add("Mul", first, sin))
        return self.add("Concat", left, right, axis=3)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the graph's inputs."""
        sequence: str | int = "sequence" if self.stage == "prefill" else 1
        total = {"prefill": "past_sequence + sequence", "decode": "past_sequence + 1"}.get(self.stage, "max_context")
        past = "max_context" if self.stage == "decode_static" else "past_sequence"
        int64 = onnx.TensorProto.INT64
        found = [
            helper.make_tensor_value_info("input_ids", int64, ["batch", sequence]),
            helper.make_tensor_value_info("attention_mask", int64, ["batch", total]),
            *self._caches("past_key_values", past),
        ]
        if self.model.rope:
            found.insert(2, helper.make_tensor_value_info("position_ids", int64, ["batch", sequence]))
        if self.stage == "decode_static":
            found.append(helper.make_tensor_value_info("cache_length", int64, ["batch"]))
        return found

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Return the graph's outputs."""
        sequence: str | int = "sequence" if self.stage == "prefill" else 1
        total = {"prefill": "past_sequence + sequence", "decode": "past_sequence + 1"}.get(self.stage, "max_context")
        logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", sequence, VOCABULARY])
        return [logits, *self._caches("present", total)]

    def _caches(self, name: str, tokens: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["batch", self.model.heads, tokens, self.model.width]
        return [
            helper.make_tensor_value_info(f"{name}.{layer}.{kind}", self.element, shape)
            for layer in range(LAYERS)
            for kind in ("key", "value")
        ]

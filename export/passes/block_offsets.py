"""Add what offsets of blocks give to a product: the sums of an input's blocks times the offsets.

With q · s + c in the place of a weight, x Wᵀ is the product with q · s, and Σ_b (Σ_{i in b} x_i) c_b beside it, which
reads one number where the weight has ``block_size``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact.quantization import OFFSETS
from lucid_deploy.export.passes.weight_initializers import WeightInitializers


class BlockOffsets:
    """Changes products of one graph; those that read the same input share its blocks' sums."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}

    def add(self, product: ir.Node, parts: WeightInitializers) -> None:
        """Let what reads a product read the sum instead, if the weight has offsets.

        Args:
            product: A node in the graph; its first input is x, ``(…, in)``.
            parts: The weight's initializers.
        """
        if not parts.tensor.offsets:
            return
        x, plain = product.inputs[0], product.outputs[0]
        assert x is not None
        node = ir.node("MatMul", [self._summed(x, parts), parts.get(OFFSETS)], name=f"{parts.name}.offsets_node")
        both = ir.node("Add", [plain, node.outputs[0]], name=f"{parts.name}.with_offsets_node")
        whole, name = both.outputs[0], plain.name
        whole.shape, whole.type = plain.shape, plain.type
        self._graph.insert_after(product, [node, both])
        ir.convenience.replace_all_uses_with(plain, whole, replace_graph_outputs=True)
        both.replace_input_with(0, plain)
        plain.name, node.outputs[0].name = f"{parts.name}.without_offsets", f"{parts.name}.of_offsets"
        whole.name, node.outputs[0].type = name, whole.type

    def _summed(self, x: ir.Value, parts: WeightInitializers) -> ir.Value:
        """Return the sums of an input's blocks, ``(…, blocks)``."""
        size = parts.tensor.block_size
        if (x, size) not in self._sums:
            assert x.shape is not None
            shape = self._constant([0] * (len(x.shape) - 1) + [-1, size])  # 0: as in x
            blocks = ir.node("Reshape", [x, shape], name=f"{parts.name}.blocks_node")
            sums = ir.node(
                "ReduceSum",
                [blocks.outputs[0], self._constant([-1])],
                attributes={"keepdims": 0},
                name=f"{parts.name}.sums_node",
            )
            for node, suffix in ((blocks, "blocks"), (sums, "sums")):
                node.outputs[0].name, node.outputs[0].type = f"{parts.name}.{suffix}", x.type
            producer = x.producer()
            if producer is None:  # an input of the graph
                self._graph.insert_before(self._graph[0], [blocks, sums])
            else:
                self._graph.insert_after(producer, [blocks, sums])
            self._sums[x, size] = sums.outputs[0]
        return self._sums[x, size]

    def _constant(self, content: list[int]) -> ir.Value:
        """Return an initializer, the same one for the same content."""
        name = "block_offsets_" + "_".join(map(str, content))
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.array(content, np.int64), name=name)
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

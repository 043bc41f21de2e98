"""Tell TensorRT's parser by attributes which plugin computes a node, and that it may take attention apart."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.plugins.table import DOMAIN, VERSION
from lucid_deploy.runtimes.tensorrt.operators import PLUGIN_OPERATORS

DECOMPOSABLE = "TRT_decomposable"  # read by TensorRT-RTX's parser; others ignore it


def name_plugins(model: ir.Model) -> int:
    """Give the plugin's nodes the attributes ``plugin_namespace`` and ``plugin_version``.

    With them TensorRT's parser takes the plugin even where the file has a function of the node's name.
    Requires: nothing.
    Result: every node that the plugin library computes has both.

    Returns:
        How many nodes there are.
    """
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in PLUGIN_OPERATORS]
    for node in nodes:
        node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
        node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(VERSION))
    return len(nodes)


def decomposable_attention(model: ir.Model) -> int:
    """Mark the standard ``Attention`` nodes, so that TensorRT may compute them by several kernels.

    ONNX does not know the attribute: its checker and onnxruntime refuse the graph from then on.
    Requires: nothing.
    Result: every ``Attention`` of the graph has it.

    Returns:
        How many nodes there are.
    """
    nodes = [node for node in model.graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")]
    for node in nodes:
        node.attributes[DECOMPOSABLE] = ir.AttrInt64(DECOMPOSABLE, 1)
    return len(nodes)

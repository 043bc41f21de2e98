"""Name the plugin's operators as onnxruntime's TensorRT provider does."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.plugins.table import DOMAIN, VERSION
from lucid_deploy.runtimes.tensorrt.operators import PLUGIN_OPERATORS

PROVIDER_DOMAIN = "trt.plugins"  # where onnxruntime registers all creators it finds in TensorRT's registry


def plugin_domain(model: ir.Model) -> bool:
    """Move the plugin's nodes into the domain ``trt.plugins``, with attributes that lead TensorRT's parser back to us.

    onnxruntime knows such nodes as custom operators of its TensorRT provider, without type or shape inference, and
    hands them to the parser as they are. The parser looks for a plugin of the namespace in ``plugin_namespace``;
    without that attribute it takes the node's domain.
    Requires: the bodies are gone (``strip_bodies``), and every output of these nodes has a type.
    Result: no node of ``ai.lucid`` that the plugin computes is left, nor the domain if nothing else uses it.

    Returns:
        Whether there was such a node.
    """
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in PLUGIN_OPERATORS]
    for node in nodes:
        if untyped := [value.name for value in node.outputs if value.type is None]:
            raise ValueError(f"{node.op_type} {node.name}: {', '.join(map(str, untyped))} has no type")
        node.domain = PROVIDER_DOMAIN
        node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
        node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(VERSION))
    if nodes:
        model.graph.opset_imports[PROVIDER_DOMAIN] = 1
        if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
            model.graph.opset_imports.pop(DOMAIN, None)
    return bool(nodes)

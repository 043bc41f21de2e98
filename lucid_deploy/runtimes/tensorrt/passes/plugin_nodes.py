"""Make TensorRT's parser use our plugins for our operators."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.plugins.table import DOMAIN, IN_TENSORRT, VERSION

_OPERATORS = tuple(each.name for each in IN_TENSORRT)
_OPTIONAL = {each.name: [one for one in each.attributes if one.default is not None] for each in IN_TENSORRT}
PROVIDER_DOMAIN = "trt.plugins"  # onnxruntime registers every plugin of TensorRT's registry as an operator of it


def strip_bodies(model: ir.Model) -> bool:
    """Remove the ONNX functions of the plugins' operators.

    If the file has a body, the parser may take it instead of the plugin, and cannot build the body's loop.
    Requires: nothing.
    Result: no function of a plugin's operator is left; their nodes are untouched.

    Returns:
        Whether there was such a function.
    """
    removed = [key for key in model.functions if key[0] == DOMAIN and key[1] in _OPERATORS]
    for key in removed:
        del model.functions[key]
    return bool(removed)


def name_plugins(model: ir.Model) -> int:
    """Give the plugins' nodes the attributes ``plugin_namespace`` and ``plugin_version``, and their optional ones.

    With the first two, TensorRT's parser takes the plugin even where the file has a function of the node's name. The
    parser warns about each attribute of a plugin that a node lacks, so the optional ones are written too.
    Requires: nothing.
    Result: every node that the plugin library computes has all of these attributes.

    Returns:
        How many nodes there are.
    """
    nodes = _plugin_nodes(model)
    for node in nodes:
        node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
        node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(VERSION))
        for each in _OPTIONAL[node.op_type]:
            assert each.default is not None
            node.attributes.setdefault(each.name, ir.AttrFloat32(each.name, each.default))
    return len(nodes)


def plugin_domain(model: ir.Model) -> bool:
    """Apply :func:`name_plugins`, and move the plugins' nodes to ``trt.plugins``, onnxruntime's domain for them.

    onnxruntime knows such nodes as custom operators of its TensorRT provider, without type or shape inference, and
    hands them to the parser as they are. The parser looks for a plugin of the namespace in ``plugin_namespace``;
    without that attribute it takes the node's domain.
    Requires: the bodies are gone (``strip_bodies``), and every output of these nodes has a type (else ``ValueError``).
    Result: no node that a plugin computes is left in ``ai.lucid``, and the domain is removed if nothing else uses it.

    Returns:
        Whether there was such a node.
    """
    nodes = _plugin_nodes(model)
    name_plugins(model)
    for node in nodes:
        if untyped := [value.name for value in node.outputs if value.type is None]:
            raise ValueError(f"{node.op_type} {node.name}: {', '.join(map(str, untyped))} has no type")
        node.domain = PROVIDER_DOMAIN
    if nodes:
        model.graph.opset_imports[PROVIDER_DOMAIN] = 1
        if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
            model.graph.opset_imports.pop(DOMAIN, None)
    return bool(nodes)


def _plugin_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in _OPERATORS]

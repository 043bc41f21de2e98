"""One graph in ONNX's ReferenceEvaluator, with operators of ``ai.lucid`` computed by functions in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from lucid_deploy.conformance.formulas import Array, Compute
from lucid_deploy.plugins import table

Graph = Callable[[Mapping[str, Array]], dict[str, Array]]


def evaluated_graph(model: onnx.ModelProto, operators: Mapping[str, Compute]) -> Graph:
    """Return a function that runs a graph with given operators."""
    evaluator = ReferenceEvaluator(model, new_ops=[_node_class(*item) for item in operators.items()])
    names = [output.name for output in model.graph.output]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, evaluator.run(None, dict(feed)), strict=True))

    return run


def _node_class(name: str, compute: Compute) -> type:
    def run(_self: Any, *inputs: Array, **attributes: Any) -> tuple[Array, ...]:
        return compute(*inputs, **attributes)

    return type(name, (OpRun,), {"op_domain": table.DOMAIN, "_run": run})

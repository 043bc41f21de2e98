"""A graph that ONNX's ReferenceEvaluator runs, with operators of ``ai.lucid`` computed by functions that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.plugins.table import DOMAIN

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]
Graph = Callable[[Mapping[str, Array]], dict[str, Array]]


def evaluated_graph(model: onnx.ModelProto, operators: Mapping[str, Callable[..., tuple[Array, ...]]]) -> Graph:
    """Return what runs a graph once.

    Returns:
        From inputs by name to outputs by name.
    """
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model, new_ops=[_node_class(*item) for item in operators.items()])
    names = [output.name for output in model.graph.output]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, evaluator.run(None, dict(feed)), strict=True))

    return run


def _node_class(name: str, compute: Callable[..., tuple[Array, ...]]) -> type:
    from onnx.reference.op_run import OpRun

    def run(_self: Any, *inputs: Array, **attributes: Any) -> tuple[Array, ...]:
        return compute(*inputs, **attributes)

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})

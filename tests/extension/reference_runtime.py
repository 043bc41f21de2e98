"""A runtime as somebody outside of the project would write it: ONNX's ReferenceEvaluator, in numpy.

The evaluator needs two adaptions, made here to the graphs as they are loaded: it runs a Loop whose condition is left
out zero times, and its GatherElements goes through ``numpy.choose``, which takes no more than 64 tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.runtimes import Capabilities, Runtime, RuntimeOptions, Session
from lucid_deploy.runtimes.last_token import last_token_logits
from lucid_deploy.runtimes.session import Array, Cache

Layers = list[tuple[Array, ...]]


class GatherElements(OpRun):
    """As the standard's, for any number of elements."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis=axis),)


def say_that_loops_go_on(nodes: Any) -> None:
    """Give every Loop without a condition a true one, in subgraphs too; nodes stay in order."""
    changed = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                say_that_loops_go_on(attribute.g.node)
        if node.op_type == "Loop" and not node.input[1]:
            node.input[1] = f"{node.output[0]}_goes_on"
            true = onnx.numpy_helper.from_array(np.array(True))
            changed.append(onnx.helper.make_node("Constant", [], [node.input[1]], value=true))
        changed.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del nodes[:]
    nodes.extend(changed)


def load(path: str) -> ReferenceEvaluator:
    """Load a graph with its weights."""
    model = onnx.load(path)
    for holder in (model.graph, *model.functions):
        say_that_loops_go_on(holder.node)
    return ReferenceEvaluator(model, new_ops=[GatherElements])


class ReferenceSession(Session[Array]):
    """Runs both graphs of an artifact with a growing cache; the cache is numpy's arrays."""

    def __init__(self, artifact: Artifact, can: Capabilities, allow_extrapolation: bool) -> None:
        super().__init__(artifact.config, artifact.manifest.dtype, "reference", allow_extrapolation, can)
        self.identity = artifact.identity
        self._graphs = {stage: load(str(artifact.graph_path(stage))) for stage in STAGES}

    def layer_arrays(self, cache: Cache[Array]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        return [(k, y) for k, y in cache.layers]

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        return list(layers)

    def _run_prefill(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run("prefill", input_ids, mask, positions, layers)

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run("decode", input_ids, mask, positions, layers)

    def _run(self, stage: str, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        feed = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "position_ids": positions}
        for index, (k, y) in enumerate(layers):
            feed |= {f"past_key_values.{index}.key": k, f"past_key_values.{index}.value": y}
        logits, *present = self._graphs[stage].run(None, feed)
        return last_token_logits(logits, mask), list(zip(present[::2], present[1::2], strict=True))


class ReferenceRuntime(Runtime):
    """See :class:`~lucid_deploy.runtimes.Runtime`."""

    name = "reference"
    description = "ONNX's own evaluator, in numpy: slow, and nobody's kernels."

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        """See :meth:`Runtime.capabilities`."""
        return Capabilities(packages=("onnx",), install="onnx")

    def open(self, artifact: Artifact, options: RuntimeOptions) -> ReferenceSession:
        """See :meth:`Runtime.open`."""
        return ReferenceSession(artifact, self.capabilities(options), options.allow_extrapolation)


RUNTIME = ReferenceRuntime()

"""Helpers: copy an artifact's graph, count a graph's operators, and decode token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.onnxruntime.session import OrtSession


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def copied(artifact: Artifact, stage: str = "decode") -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(artifact.graph(stage))
    return model


PROMPT, STEPS = 16, 4  # tokens


def decoded(session: OrtSession, ids: np.ndarray) -> np.ndarray:
    """Return the logits of the steps after the prompt, which is given token by token."""
    cache = session.empty_cache(len(ids))
    steps = [session.decode(ids[:, at : at + 1], cache) for at in range(ids.shape[1])]
    return np.stack(steps[PROMPT:])

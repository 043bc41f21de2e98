"""Graphs of an artifact to change in tests, and which operators a graph has."""

from __future__ import annotations

from collections import Counter

import onnx

from lucid_deploy.artifact import Artifact


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def copied(artifact: Artifact, stage: str = "decode") -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(artifact.graph(stage))
    return model

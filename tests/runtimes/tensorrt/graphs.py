"""Load exported graphs for the passes, make inputs, and run the changed graphs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from lucid_deploy.artifact import Artifact

LLAMA: dict[str, Any] = {"attention_type": "llama"}


def load(artifact: Artifact, stage: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.load(str(artifact.graph_path(stage)), load_external_data=False))


def open_model(model: ir.Model, artifact: Artifact, tmp_path: Path) -> ort.InferenceSession:
    path = tmp_path / "changed.onnx"
    shutil.copyfile(artifact.path("weights.bin"), tmp_path / "weights.bin")
    onnx.save(ir.serde.serialize_model(model), str(path))
    onnx.checker.check_model(str(path), full_check=True)
    return ort.InferenceSession(str(path))


def inputs(artifact: Artifact, stage: str, past: int, new: int) -> dict[str, np.ndarray]:
    rng, mask = np.random.default_rng(0), np.ones((2, past + new), np.int64)
    mask[0, :2] = 0
    mask[1, past : past + new - 1 : 2] = 0  # padding among the new tokens too
    feed = {
        "input_ids": rng.integers(0, 97, (2, new)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, past:],
    }
    for info in artifact.manifest.graphs[stage].inputs:
        if len(info.shape) != 4:
            continue
        feed[info.name] = rng.standard_normal((2, info.shape[1], past, info.shape[3])).astype(np.float32)
    return feed

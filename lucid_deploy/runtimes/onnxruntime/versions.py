"""Versions of onnxruntime that load an artifact and give wrong numbers, or none: refused before anything is loaded."""

from __future__ import annotations

import re

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError

# Its Attention gives query head h the key/value head h mod KV, not h // (H / KV); the logits are off by their own size.
_WRONG_HEADS = "1.23.0"
_FIRST = (1, 23)  # older ones know no opset 23
_STATIC = (1, 25)  # the first version that has TensorScatter, which writes rows into a static cache
_FLOAT8 = (1, 24)  # the first version whose Python API gives NumPy values in FP8; 1.23.2 was not tried
_QUANTIZES = (1, 25)  # a version that has QuantizeLinear of opset 23; 1.23.1 has it not, 1.24 was not tried


def has_quantize_linear(version: str) -> bool:
    """Return whether a version has ``QuantizeLinear`` of the graphs' opset, which the body that reads int8 needs."""
    return _numbers(version) >= _QUANTIZES


def check_version(version: str, artifact: Artifact) -> None:
    """Check that a version of onnxruntime computes an artifact rightly."""
    if _numbers(version) < _FIRST:
        raise LucidError(
            f"onnxruntime {version} is too old for {artifact.directory}: it does not know opset 23. Install another "
            'version: pip install "onnxruntime>=1.23.1"'
        )
    config = artifact.config
    grouped = 1 < config.num_key_value_heads < config.num_attention_heads
    if version == _WRONG_HEADS and grouped:
        raise LucidError(
            f"onnxruntime {version} gives wrong logits for {artifact.directory}: it pairs the "
            f"{config.num_attention_heads} query heads with other key/value heads than the model does. Install another "
            'version: pip install "onnxruntime>=1.23.1"'
        )
    if _numbers(version) < _STATIC and artifact.writes_in_place:
        raise LucidError(
            f"onnxruntime {version} cannot write into the static cache of {artifact.directory}: it has no operator "
            'TensorScatter. Install another version, pip install "onnxruntime>=1.25", or export with --opset 23 or '
            "--cache growing."
        )
    if _numbers(version) < _FLOAT8 and artifact.manifest.cache_dtype == "fp8":
        raise LucidError(
            f"onnxruntime {version} cannot read back the FP8 cache of {artifact.directory}. Install another version, "
            'pip install "onnxruntime>=1.24", or export with another --cache-dtype.'
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; builds of one's own add words behind them."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])

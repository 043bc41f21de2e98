"""The exported artifact: a directory with the manifest ``lucid.json``.

The manifest has the sha256 of every other file that an export writes, except ``adapters.bin``. Reading an artifact
needs neither torch nor onnxruntime.
"""

from lucid_deploy.artifact.external_data import check_external_data
from lucid_deploy.artifact.manifest import (
    ADAPTERS,
    ALIGNMENT,
    CACHES,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    OPSET_TENSOR_SCATTER,
    PACK_LIMIT,
    STAGES,
    VERIFY,
    WEIGHTS,
    GraphForm,
    GraphInfo,
    Manifest,
    TensorInfo,
    whole_pages,
)
from lucid_deploy.artifact.read import Artifact, check_hashes, open_artifact

__all__ = [
    "ADAPTERS",
    "ALIGNMENT",
    "CACHES",
    "DTYPES",
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST",
    "OPSET_TENSOR_SCATTER",
    "PACK_LIMIT",
    "STAGES",
    "VERIFY",
    "WEIGHTS",
    "Artifact",
    "GraphForm",
    "GraphInfo",
    "Manifest",
    "TensorInfo",
    "check_external_data",
    "check_hashes",
    "open_artifact",
    "whole_pages",
]

"""Versions of OpenVINO that do not run the graphs or give results of a wrong shape, and graphs that none runs."""

from __future__ import annotations

import re

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError

# 2026.3 loads them and gives no row of logits; 2026.2 has no RMSNormalization; older ones refuse Pad with axes.
_FIRST = (2026, 4)


def check_version(version: str) -> None:
    """Check that a version of OpenVINO computes inlined graphs rightly.

    Args:
        version: As ``openvino.__version__`` has it.

    Raises:
        LucidError: It does not; the remedy is named.
    """
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _FIRST:
        raise LucidError(
            f"OpenVINO {version} does not run exported graphs rightly; the first that does is 2026.4. Install another "
            'version: pip install "openvino>=2026.4,<2027"'
        )


def check_operators(artifact: Artifact) -> None:
    """Check that OpenVINO has the operators of an artifact's graphs.

    Raises:
        LucidError: It does not; the remedy is named.
    """
    if artifact.manifest.cache == "static" and artifact.writes_in_place:
        raise LucidError(
            f"OpenVINO cannot write into the static cache of {artifact.directory}: it has no operator TensorScatter. "
            "Export it with --opset 23."
        )

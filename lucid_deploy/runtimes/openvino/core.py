"""The one place where OpenVINO is imported, and its registry of devices, one for the process."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    import openvino

# 2026.3 loads them and gives no row of logits; 2026.2 has no RMSNormalization; older ones refuse Pad with axes.
_FIRST = (2026, 4)


def check_version(version: str) -> None:
    """Check that a version of OpenVINO computes inlined graphs rightly."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _FIRST:
        raise LucidError(
            f"OpenVINO {version} does not run exported graphs rightly; the first that does is 2026.4. Install another "
            'version: pip install "openvino>=2026.4,<2027"'
        )


def check_operators(artifact: Artifact) -> None:
    """Check that OpenVINO has the operators of an artifact's graphs."""
    if artifact.manifest.cache == "static" and artifact.writes_in_place:
        raise LucidError(
            f"OpenVINO cannot write into the static cache of {artifact.directory}: it has no operator TensorScatter. "
            "Export it with --opset 23."
        )


# Its import sends an event to Google Analytics, and keeps an identifier in ~/intel, unless that package is missing.
_REPORTS = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Import OpenVINO, which reports nothing then; what a program has imported before stays as it is."""
    hidden = not {"openvino", _REPORTS} & sys.modules.keys()
    if hidden:
        sys.modules[_REPORTS] = cast(ModuleType, None)  # as if it were not installed: OpenVINO has a stand-in for it
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[_REPORTS]
    return openvino


@functools.cache
def core() -> openvino.Core:
    """Return it; it lives as long as the process.

    The CPU device gives the thread that first compiles a graph another stack for signal handlers, and frees it with
    itself, in whichever thread. With a Core for each session, the next signal after another thread had closed the last
    one was a segmentation fault (OpenVINO 2026.4).
    """
    found: openvino.Core = import_openvino().Core()
    return found


def run_request(request: openvino.InferRequest, feed: Mapping[str, Any]) -> None:
    """Run a request once, on the arrays of the feed where they are; what it puts out is in its tensors then.

    ``infer`` would return as if nothing had happened when an operator finds no memory (OpenVINO 2026.4.1), and the
    tensors would hold what an earlier run put out. Waiting says it.
    """
    try:
        request.start_async(dict(feed), share_inputs=True)
        request.wait()
    except BaseException:
        with suppress(RuntimeError):
            request.wait()  # after Ctrl-C it still reads the arrays
        raise

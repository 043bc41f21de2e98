"""The one place where OpenVINO is imported, and its registry of devices, one for the process."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import openvino


# Its import sends an event to Google Analytics, and keeps an identifier in ~/intel, unless that package is missing.
_REPORTS = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Import OpenVINO, which reports nothing then; what a program has imported before stays as it is.

    Raises:
        ImportError: It is not installed.
    """
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

    Args:
        request: It runs nothing else.
        feed: Inputs by name; those that are left out stay as they are.

    Raises:
        RuntimeError: An operator failed. Compile the graph again: this one may fail or be wrong from now on.
    """
    try:
        request.start_async(dict(feed), share_inputs=True)
        request.wait()
    except BaseException:
        with suppress(RuntimeError):
            request.wait()  # after Ctrl-C it still reads the arrays
        raise

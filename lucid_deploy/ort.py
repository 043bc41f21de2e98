"""The one place where the toolkit imports onnxruntime, so that no telemetry is sent unless the user wants it.

From 1.29 on, the wheels for Linux and macOS send events to Microsoft by default: Python's path, names of files, times,
devices. They keep an identifier and events that wait to be sent in ``~/.cache/Microsoft/DeveloperTools``.
"""

from __future__ import annotations

import os
from types import ModuleType

# onnxruntime's own switch, read once when the library is loaded: set before that, it stops all events.
SWITCH = "ORT_DISABLE_TELEMETRY"
_OFF = ("1", "true", "yes", "on", "y")  # values by which onnxruntime disables telemetry


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off, unless the user has set ``ORT_DISABLE_TELEMETRY`` to, say, 0.

    If the program has imported onnxruntime before, its events at start have been sent; only later ones are turned off.
    """
    # Processes that this one starts inherit the variable. A value that the user has set stays.
    off = os.environ.setdefault(SWITCH, "1").strip().lower() in _OFF
    import onnxruntime

    if off and hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime

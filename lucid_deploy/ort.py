"""The one place where onnxruntime is imported, so that it reports nothing to its maker unless the user wants that.

From 1.29 the wheels for Linux and macOS send events to Microsoft: the path of Python, names of files, times, devices.
They are on by default, and keep an identifier and what waits to be sent in ``~/.cache/Microsoft/DeveloperTools``.
"""

from __future__ import annotations

import os
from types import ModuleType

# onnxruntime's own switch. It is read once, when the library is loaded; only then does it hold back everything.
SWITCH = "ORT_DISABLE_TELEMETRY"
_OFF = ("1", "true", "yes", "on", "y")  # onnxruntime's words for it


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off, unless ``ORT_DISABLE_TELEMETRY`` is in the environment and says no.

    If the program has imported onnxruntime before, what it sends after its start is turned off.
    """
    # Processes that this one starts inherit it. A value of the user's stays.
    off = os.environ.setdefault(SWITCH, "1").strip().lower() in _OFF
    import onnxruntime

    if off and hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime

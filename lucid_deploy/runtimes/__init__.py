"""Run models in different runtimes behind one session interface.

Names are imported on first use, so that runtimes can be listed without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid_deploy.runtimes.open import open_session as open_session
    from lucid_deploy.runtimes.options import RuntimeOptions as RuntimeOptions
    from lucid_deploy.runtimes.registry import register_runtime as register_runtime
    from lucid_deploy.runtimes.runtime import Capabilities as Capabilities
    from lucid_deploy.runtimes.runtime import Runtime as Runtime
    from lucid_deploy.runtimes.session import Session as Session

_MODULES = {
    "Capabilities": "runtime",
    "Runtime": "runtime",
    "RuntimeOptions": "options",
    "Session": "session",
    "open_session": "open",
    "register_runtime": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

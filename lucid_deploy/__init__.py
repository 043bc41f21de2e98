"""lucid-deploy: take models with LUCID attention from PyTorch to production.

The API is loaded when it is used::

    import lucid_deploy as ld

    artifact = ld.export("checkpoint", "out", cache="static")
    artifact.verify().raise_if_failed()
    with ld.open("out") as model:
        print(model.generate("…", max_new_tokens=64).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from lucid_deploy.api import Answer, Artifact, Model, export, open, verify

__all__ = [
    "Answer",
    "Artifact",
    "CheckFailed",
    "LucidError",
    "Model",
    "__version__",
    "export",
    "open",
    "verify",
]
_LAZY = {"Answer", "Artifact", "Model", "open", "verify"}


def __getattr__(name: str) -> Any:
    if name == "export":
        return importlib.import_module("lucid_deploy.export")
    if name in _LAZY:
        from lucid_deploy import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""Where the plugin library is, and bringing it beside the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def default_library() -> Path:
    """Return where ``lucid-deploy plugin build`` puts the library and ``lucid-deploy build`` looks for it."""
    from lucid_deploy.plugins.hosts.cache_folder import cache_folder
    from lucid_deploy.plugins.hosts.tensorrt.build import LIBRARY_NAME

    return cache_folder() / LIBRARY_NAME


def register(library: Path, trt: Any) -> None:
    """Bring the library's operators into TensorRT; afterwards its ONNX parser can meet their nodes safely.

    Raises:
        LucidError: It is missing, has another ABI or does not register, or the parser could not find its own library.
    """
    from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins

    register_plugins(library, trt)

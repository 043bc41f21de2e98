"""Load the plugin library into TensorRT's registry, where parsing, building and running look up plugins."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin
from lucid_deploy.plugins.table import DOMAIN, IN_TENSORRT, VERSION

RTX_LIBRARIES = "tensorrt_rtx_libs"  # the package that holds TensorRT-RTX's shared libraries
RTX_NAME = "libtensorrt_rtx.so"


def register_plugins(library: Path, trt: Any) -> None:
    """Load the plugin library into the registry, unless all of our plugins are registered already.

    Args:
        library: The library that ``lucid-deploy plugin build`` wrote.
        trt: The module ``tensorrt_rtx`` or ``tensorrt``.

    Raises:
        LucidError: The library is missing, damaged, has another ABI or does not register all our plugins, or
            TensorRT-RTX's library cannot be linked under the name that its parser opens.
    """
    check_plugin(library)
    if trt.__name__.startswith("tensorrt_rtx"):
        make_rtx_name_resolvable()
    registry = trt.get_plugin_registry()
    if not _missing(registry):
        return
    registry.load_library(str(library))
    if missing := _missing(registry):
        raise LucidError(f"TensorRT did not register {', '.join(missing)} from {library}.")


def _missing(registry: Any) -> list[str]:
    known = {(each.name, each.plugin_version, each.plugin_namespace) for each in registry.all_creators}
    return [each.name for each in IN_TENSORRT if (each.name, str(VERSION), DOMAIN) not in known]


def make_rtx_name_resolvable() -> None:
    """Link TensorRT-RTX's library under its unversioned name, which its ONNX parser opens at a plugin node.

    The wheel of 1.7 has only ``libtensorrt_rtx.so.1``, and the parser ends the process if it does not find the name
    without the number. Its search path includes the library's folder.

    Raises:
        LucidError: The link does not exist, and the folder is not writable.
    """
    spec = importlib.util.find_spec(RTX_LIBRARIES)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        link = Path(folder, RTX_NAME)
        versioned = sorted(Path(folder).glob(f"{RTX_NAME}.*"))
        if link.exists() or not versioned:
            continue
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                temporary = Path(scratch, RTX_NAME)
                temporary.symlink_to(versioned[-1].name)  # relative to the final link's folder
                os.replace(temporary, link)
        except OSError as error:
            raise LucidError(
                f"TensorRT-RTX's parser needs the link {link}, which cannot be created ({error}). "
                f"Create it yourself: ln -s {versioned[-1].name} {link}"
            ) from error

"""All runtimes by name: those of this package, of other packages, and those that a program has registered."""

from __future__ import annotations

import importlib

from lucid_deploy.errors import LucidError
from lucid_deploy.plug import entry_points, load_plugin
from lucid_deploy.runtimes.runtime import Runtime

GROUP = "lucid_deploy.runtimes"
AUTO = "auto"
DEFAULT = "onnxruntime"
BUILT_IN = ("torch", "onnxruntime", "openvino", "tensorrt")

_registered: dict[str, Runtime] = {}


def register_runtime(runtime: Runtime) -> None:
    """Add a runtime in this process. A package adds its runtime to every process with an entry point::

    [project.entry-points."lucid_deploy.runtimes"]
    reference = "my_package.my_module:RUNTIME"
    """
    if runtime.name in runtime_names():
        raise LucidError(f"There is a runtime {runtime.name} already; give this one another name.")
    _registered[runtime.name] = runtime


def unregister_runtime(name: str) -> None:
    """Undo :func:`register_runtime`."""
    if _registered.pop(name, None) is None:
        raise LucidError(f"No runtime {name} was registered in this process.")


def runtime_names() -> tuple[str, ...]:
    """Return all names that ``--runtime`` takes, ``auto`` first. Loads no runtime."""
    return tuple(dict.fromkeys((AUTO, *BUILT_IN, *sorted(entry_points(GROUP)), *_registered)))


def is_built_in(name: str) -> bool:
    """Whether a name is ``auto`` or a runtime of this package, without a search through packages."""
    return name == AUTO or name in BUILT_IN


def find_runtime(name: str) -> Runtime:
    """Return a runtime by its name. A package cannot replace a built-in one."""
    name = DEFAULT if name == AUTO else name
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        module = importlib.import_module(f"lucid_deploy.runtimes.{name}.runtime")
        runtime: Runtime = module.RUNTIME
        return runtime
    found = load_plugin(GROUP, name, Runtime, "runtime")  # type: ignore[type-abstract]
    if found is None:
        raise LucidError(f"Runtime {name!r} is not known; known are {', '.join(runtime_names())}.")
    return found


def built_in_runtimes() -> tuple[Runtime, ...]:
    """Return the runtimes of this package."""
    return tuple(map(find_runtime, BUILT_IN))

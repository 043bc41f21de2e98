"""All runtimes by name: those of this package, those that other packages bring, and those a program registers."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.runtime import Runtime

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "lucid_deploy.runtimes"
AUTO = "auto"
DEFAULT = "onnxruntime"
BUILT_IN = ("torch", "onnxruntime", "openvino", "tensorrt")

_registered: dict[str, Runtime] = {}


def register_runtime(runtime: Runtime) -> None:
    """Make a runtime known in this process: to ``open_session``, to ``--runtime``, and in messages.

    A package makes its runtime known to every process with an entry point instead::

        [project.entry-points."lucid_deploy.runtimes"]
        reference = "my_package.my_module:RUNTIME"

    Raises:
        LucidError: The name is taken.
    """
    if runtime.name in runtime_names():
        raise LucidError(f"There is a runtime {runtime.name} already; give this one another name.")
    _registered[runtime.name] = runtime


def unregister_runtime(name: str) -> None:
    """Forget a runtime that :func:`register_runtime` made known.

    Raises:
        LucidError: It did not.
    """
    if _registered.pop(name, None) is None:
        raise LucidError(f"No runtime {name} was registered in this process.")


def runtime_names() -> tuple[str, ...]:
    """Return all names that ``--runtime`` takes, ``auto`` first. Loads no runtime."""
    return tuple(dict.fromkeys((AUTO, *BUILT_IN, *sorted(_found()), *_registered)))


def is_built_in(name: str) -> bool:
    """Whether a name is ``auto`` or a runtime of this package; cheap, since no package is searched."""
    return name == AUTO or name in BUILT_IN


def find_runtime(name: str) -> Runtime:
    """Return a runtime by its name.

    Args:
        name: One of :func:`runtime_names`; ``auto`` is onnxruntime.

    Raises:
        LucidError: It is not known, two packages bring one of this name, or the package that brings it is broken. A
            package cannot replace a runtime of ours.
    """
    name = DEFAULT if name == AUTO else name
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        return _built_in(name)
    found = _found().get(name, [])
    if not found:
        raise LucidError(f"Runtime {name!r} is not known; known are {', '.join(runtime_names())}.")
    if len(found) > 1:
        raise LucidError(f"Several packages bring a runtime {name}: {', '.join(map(_origin, found))}. Remove one.")
    return _load(found[0])


def built_in_runtimes() -> tuple[Runtime, ...]:
    """Return the runtimes of this package."""
    return tuple(map(find_runtime, BUILT_IN))


def _found() -> dict[str, list[EntryPoint]]:
    """Return what other packages bring, by name."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if not is_built_in(entry.name):
            found.setdefault(entry.name, []).append(entry)
    return found


def _built_in(name: str) -> Runtime:
    runtime: Runtime = importlib.import_module(f"lucid_deploy.runtimes.{name}.runtime").RUNTIME
    return runtime


@cache
def _load(entry: EntryPoint) -> Runtime:
    try:
        runtime = entry.load()
    except (ImportError, AttributeError) as error:
        raise LucidError(
            f"Runtime {entry.name} of {_origin(entry)} does not load: {error}. Install its package again, or remove it."
        ) from error
    if not isinstance(runtime, Runtime) or runtime.name != entry.name:
        raise LucidError(f"{entry.value} of {_origin(entry)} is no runtime of the name {entry.name}.")
    return runtime


def _origin(entry: EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.dist.name} ({entry.value})"

"""All runtimes by name: those of this package, those that other packages bring, and those a program registers."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.runtime import Runtime

GROUP = "lucid_deploy.runtimes"
AUTO = "auto"
DEFAULT = "onnxruntime"
BUILT_IN = ("torch", "onnxruntime", "tensorrt")

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


def find_runtime(name: str) -> Runtime:
    """Return a runtime by its name.

    Args:
        name: One of :func:`runtime_names`; ``auto`` is onnxruntime.

    Raises:
        LucidError: It is not known, two packages bring one of this name, or the package that brings it is broken.
    """
    name = DEFAULT if name == AUTO else name
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        return _load(EntryPoint(name, f"{GROUP}.{name}.runtime:RUNTIME", GROUP))
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
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in (AUTO, *BUILT_IN):
            found.setdefault(entry.name, []).append(entry)
    return found


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

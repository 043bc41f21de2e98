"""All runtimes by name: those of this package, of other packages, and those that the program has registered.

Another package adds its runtime with an entry point::

    [project.entry-points."lucid_deploy.runtimes"]
    reference = "my_package.my_module:RUNTIME"
"""

from __future__ import annotations

from lucid_deploy.plug import Registry
from lucid_deploy.runtimes.runtime import Runtime

AUTO, DEFAULT = "auto", "onnxruntime"
BUILT_IN = ("torch", "onnxruntime", "openvino", "tensorrt")

_REGISTRY = Registry(
    "lucid_deploy.runtimes",
    Runtime,  # type: ignore[type-abstract]
    "runtime",
    {name: f"lucid_deploy.runtimes.{name}.runtime.RUNTIME" for name in BUILT_IN},
)
register_runtime = _REGISTRY.register


def runtime_names() -> tuple[str, ...]:
    """Return all values of ``--runtime``, ``auto`` first, without loading a runtime."""
    return (AUTO, *_REGISTRY.names())


def find_runtime(name: str) -> Runtime:
    """Return the runtime of this name (``auto``: onnxruntime); raise a LucidError if it is unknown or cannot load."""
    return _REGISTRY.named(DEFAULT if name == AUTO else name)


def built_in_runtimes() -> tuple[Runtime, ...]:
    """Return the runtimes of this package."""
    return tuple(map(find_runtime, BUILT_IN))

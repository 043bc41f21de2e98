"""The interface of a runtime: a name, declared capabilities, and a way to open artifacts."""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError, missing_package
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact, Manifest
    from lucid_deploy.runtimes.layers import Layers
    from lucid_deploy.runtimes.session import Session


@dataclass(frozen=True)
class Capabilities:
    """What a runtime can do under given options, known before an artifact is opened."""

    dtypes: tuple[str, ...] = ("float32",)  # of weights and arithmetic
    devices: tuple[str, ...] = ("cpu",)  # kinds of devices, the preferred one first
    caches: tuple[str, ...] = ("growing",)  # growing and static caches, the preferred one first
    # Graph forms, the preferred one first: with functions, the file defines our operators as ONNX functions; inline, it
    # has no functions.
    graphs: tuple[str, ...] = ("functions", "inline")
    cache_dtypes: tuple[str, ...] = ()  # types of the cache besides the model's own
    cache_sorts: tuple[str, ...] = ("rows",)  # sorts of cached tensors, as in lucid_deploy.cache.layout
    builds_engines: bool = False  # it runs engines made by `lucid-deploy build`, within limits chosen there
    runs_graphs: bool = True  # it runs the artifact's graphs; False: its own model with the artifact's weights
    reads_layers: bool = False  # layers can be run one by one, with open_layers
    rounds_activations: bool = False  # inputs of quantized layers are rounded to int8 if the artifact says so
    packages: tuple[str, ...] = ()  # import names of required packages; reports record their versions
    install: str = ""  # what pip installs to get them


class Runtime(ABC):
    """A way to run artifacts, selected by name.

    Register your own with :func:`~lucid_deploy.runtimes.registry.register_runtime`, or as an entry point of the group
    ``lucid_deploy.runtimes`` in a package.

    Attributes:
        name: The value of ``--runtime``.
        description: One line that describes it to users.
        options: Fields of :class:`~lucid_deploy.runtimes.options.RuntimeOptions` that it supports besides ``device``,
            ``allow_extrapolation`` and ``adapter``; any other that differs from its default is refused.
    """

    name: str
    description: str
    options: frozenset[str] = frozenset()

    @abstractmethod
    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        """Return what the runtime can do under these options, without importing anything large."""

    @abstractmethod
    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        """Open an artifact that fits the declared capabilities."""

    def runs_form(self, manifest: Manifest) -> bool:
        """Whether the installed version runs this manifest's graphs; only called for artifacts with several forms."""
        return True

    def open_layers(self, session: Session[Any], artifact: Artifact | None) -> Layers:
        """Return the layers of a session's model, to run them one by one; only called if ``reads_layers``."""
        raise LucidError(f"Runtime {self.name} cannot run a layer by itself.")

    def check_installed(self, options: RuntimeOptions) -> None:
        """Raise a LucidError if a package that the runtime needs is not installed; import none of them."""
        wanted = self.capabilities(options)
        for package in wanted.packages:
            if not is_installed(package):
                raise missing_package(package, wanted.install or package, "run an exported artifact")


def is_installed(package: str) -> bool:
    """Whether a package of this import name is installed; only its parent packages are imported."""
    if package in sys.modules:
        return sys.modules[package] is not None  # None blocks its import
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False

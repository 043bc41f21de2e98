"""The interface of a runtime: a name, declared capabilities, and a way to open artifacts."""

from __future__ import annotations

import importlib.util
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from lucid_deploy.errors import LucidError, missing_package
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.runtimes.layers import Layers
    from lucid_deploy.runtimes.session import Session

Graph: TypeAlias = "Callable[[Mapping[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]]"
_NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Capabilities:
    """What a runtime can do under given options, known before an artifact is opened. The defaults promise least.

    Attributes:
        dtypes: Types of weights and arithmetic.
        devices: Kinds of devices, the preferred one first.
        caches: Kinds of cache that an artifact may have.
        graphs: Forms of graphs: ``functions``, with our operators as functions that the file defines, and ``inline``,
            as ``export --inline`` writes them.
        cache_dtypes: Types that its cache may have besides the model's own.
        cache_sorts: Sorts of tensors that layers may cache, see :mod:`lucid_deploy.cache.layout`.
        builds_engines: Whether it runs engines that ``lucid-deploy build`` made, with limits of rows and tokens chosen
            there.
        runs_graphs: Whether it runs the artifact's graphs; otherwise only its weights, in a model of its own.
        reads_layers: Whether layers can be run one by one, with :meth:`Runtime.open_layers`.
        opens_graphs: Whether a single graph can be run, with :meth:`Runtime.open_graph`.
        rounds_activations: Whether the inputs of quantized products are rounded to 8 bits where the artifact says so.
        copies_weights: Whether weights take memory beside the artifact's mapped file.
        packages: Import names of the packages that it is made of; their versions are written beside results.
        install: What ``pip install`` takes to get them.
    """

    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    caches: tuple[str, ...] = ("growing",)
    graphs: tuple[str, ...] = ("functions", "inline")
    cache_dtypes: tuple[str, ...] = ()
    cache_sorts: tuple[str, ...] = ("rows",)
    builds_engines: bool = False
    runs_graphs: bool = True
    reads_layers: bool = False
    opens_graphs: bool = False
    rounds_activations: bool = False
    copies_weights: bool = True
    packages: tuple[str, ...] = ()
    install: str = ""

    def __post_init__(self) -> None:
        """Check that lists are lists: a string would be read letter by letter.

        Raises:
            LucidError: One is not.
        """
        for item in fields(self):
            value = getattr(self, item.name)
            is_list = isinstance(value, Sequence | Set) and not isinstance(value, str)
            if item.type == "tuple[str, ...]" and not (is_list and all(isinstance(each, str) for each in value)):
                raise LucidError(f"{item.name} of a runtime's Capabilities must be a list of strings, not {value!r}.")


class Runtime(ABC):
    """A runtime.

    One of your own becomes known through :func:`~lucid_deploy.runtimes.registry.register_runtime`, or as an entry point
    of the group ``lucid_deploy.runtimes`` in an installed package.

    Attributes:
        name: As ``--runtime`` takes it: lower-case letters, digits and dashes.
        description: One line for people.
        options: Fields of :class:`~lucid_deploy.runtimes.options.RuntimeOptions` that it supports besides ``device``
            and ``allow_extrapolation``; others are refused before it is opened.
    """

    name: str
    description: str
    options: frozenset[str] = frozenset()

    @abstractmethod
    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        """Return what it can do under some options. Imports nothing large.

        Raises:
            LucidError: Options that it does not know.
        """

    @abstractmethod
    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        """Open an artifact that fits the declared capabilities.

        Raises:
            LucidError: It cannot be run here.
            CheckFailed: It is damaged.
        """

    def open_layers(self, session: Session[Any], artifact: Artifact | None) -> Layers:
        """Return the layers behind a session of this runtime, to be run one by one.

        Args:
            session: What :meth:`open` returned, or one made of a model.
            artifact: The artifact that it runs, if known.

        Raises:
            LucidError: They cannot be run; always, unless ``reads_layers`` is declared and this method is replaced.
        """
        raise LucidError(f"Runtime {self.name} cannot run a layer by itself.")

    def open_graph(self, model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
        """Return a function that runs a single graph, from inputs by name to outputs by name.

        Args:
            model: The graph with its weights, in a form of ``graphs``.
            options: How it is to be run.

        Raises:
            LucidError: It cannot be run; always, unless ``opens_graphs`` is declared and this method is replaced.
            Exception: The runtime's own, of a graph that it refuses.
        """
        raise LucidError(f"Runtime {self.name} cannot run a graph by itself.")

    def check_installed(self, options: RuntimeOptions) -> None:
        """Check that the packages are installed, without importing them.

        Raises:
            LucidError: One is not; the message says how to install it.
        """
        wanted = self.capabilities(options)
        for package in wanted.packages:
            if not is_installed(package):
                raise missing_package(package, wanted.install or package, "run an exported artifact")


def check_declared(runtime: Any) -> None:
    """Check a runtime's class, name, description and options.

    Raises:
        LucidError: One is not as :class:`Runtime` describes it.
    """
    if not isinstance(runtime, Runtime):
        what = f"the class {runtime.__name__}" if isinstance(runtime, type) else repr(runtime)
        raise LucidError(f"A runtime is an object of a subclass of Runtime, not {what}.")
    name = getattr(runtime, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LucidError(f"The name of a runtime must be lower-case letters, digits and dashes, not {name!r}.")
    if not isinstance(getattr(runtime, "description", None), str):
        raise LucidError(f"Runtime {name} has no description: describe it in one line.")
    if unknown := sorted(set(runtime.options) - {item.name for item in fields(RuntimeOptions)}):
        raise LucidError(f"Runtime {name} supports {', '.join(unknown)}, which RuntimeOptions does not have.")


def is_installed(package: str) -> bool:
    """Whether a package can be imported, by its name; nothing is imported."""
    if package in sys.modules:
        return sys.modules[package] is not None  # None: it is blocked
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would lie in
        return False

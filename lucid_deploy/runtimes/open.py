"""Open an artifact in a runtime, after checking that the runtime supports the options and the artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import Artifact, Manifest, open_artifact
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions, flag, is_device
from lucid_deploy.runtimes.registry import built_in_runtimes, find_runtime
from lucid_deploy.runtimes.runtime import Capabilities, Runtime

if TYPE_CHECKING:
    from lucid_deploy.runtimes.session import Session

_EVERYWHERE = frozenset({"runtime", "device", "allow_extrapolation", "adapter"})  # options that every runtime supports


def open_session(
    artifact: str | Path | Artifact, runtime: str | RuntimeOptions = "auto", **options: Any
) -> Session[Any]:
    """Open an artifact with the graph form (growing or static cache, functions or inlined) that the runtime prefers.

    Args:
        artifact: An artifact's directory, or an opened artifact; if ``Artifact.form`` returned it, its form is used.
        runtime: A runtime's name, one of :func:`~lucid_deploy.runtimes.registry.runtime_names`, or all options.
        options: Fields of :class:`~lucid_deploy.runtimes.options.RuntimeOptions` to replace, such as ``threads=2``.
    """
    wanted = replace(runtime if isinstance(runtime, RuntimeOptions) else RuntimeOptions(runtime), **options)
    chosen, wanted, can = _choose(wanted)
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    opened = _choose_form(opened, wanted, can)
    chosen.check_installed(wanted)
    with unchanged(opened):  # files of two exports mixed would give wrong answers
        session = chosen.open(opened, wanted)
        if opened.manifest.adapters is not None:
            session.adapters = {each.name: each for each in opened.adapters()}
    session.default_adapter = session.adapter_id(wanted.adapter)
    record = opened.manifest.quantization
    session.rounded_inputs = None if record is None else record.rounded_inputs(session.capabilities.rounds_activations)
    return session


def check_fits(artifact: Artifact, options: RuntimeOptions, here: bool) -> None:
    """Check, without loading, that the runtime supports the options and artifact and, if ``here``, is installed."""
    chosen, wanted, can = _choose(options)
    _choose_form(artifact, wanted, can)
    if here:
        chosen.check_installed(wanted)


def _choose(options: RuntimeOptions) -> tuple[Runtime, RuntimeOptions, Capabilities]:
    chosen = find_runtime(options.runtime)
    wanted = replace(options, runtime=chosen.name)
    _check_options(chosen, wanted)
    can = chosen.capabilities(wanted)
    if not is_device(wanted.device, can.devices):
        raise LucidError(_device_error(can, wanted))
    return chosen, wanted, can


def _check_options(runtime: Runtime, options: RuntimeOptions) -> None:
    for field in options.given():
        if field not in _EVERYWHERE | runtime.options:
            owners = _listed(other.name for other in built_in_runtimes() if field in other.options)
            raise LucidError(
                f"{flag(field)} is for {owners}; runtime {runtime.name} does not take it. Omit it or change --runtime."
            )


def _device_error(can: Capabilities, options: RuntimeOptions) -> str:
    elsewhere = [
        other.name
        for other in built_in_runtimes()
        if is_device(options.device, other.capabilities(RuntimeOptions()).devices)
    ]
    remedy = f" Choose --runtime {_listed(elsewhere)}, or onnxruntime's --provider." if elsewhere else ""
    return f"{_title(options)} runs on {_listed(can.devices)}, not on {options.device!r}.{remedy}"


def runnable_forms(artifact: Artifact, options: RuntimeOptions) -> tuple[Manifest, ...]:
    """Return the manifests of the graph forms that a runtime can run, the preferred one first."""
    chosen, _, can = _choose(options)
    forms = [
        manifest
        for manifest in artifact.manifest.each_form()
        if manifest.cache in can.caches and manifest.graph_form in can.graphs and chosen.runs_form(manifest)
    ]
    forms.sort(key=lambda each: (can.caches.index(each.cache), can.graphs.index(each.graph_form)))
    return tuple(forms)


def _choose_form(artifact: Artifact, options: RuntimeOptions, can: Capabilities) -> Artifact:
    """Return the artifact with the graph form that a runtime prefers; raise a LucidError if it can run none."""
    if artifact.manifest.forms and (forms := runnable_forms(artifact, options)):
        artifact = artifact.form(forms[0].cache, forms[0].inline)
    check_artifact(can, _title(options), artifact)
    return artifact


def check_artifact(can: Capabilities, title: str, artifact: Artifact) -> None:
    """Raise a LucidError unless a runtime with these capabilities can run the artifact."""
    manifest, path = artifact.manifest, artifact.directory
    every_form = "without --cache and --inline, which writes every form"
    for kind, what, accepted, remedy in (
        (manifest.dtype, "type", can.dtypes, f"with --dtype {_listed(can.dtypes)}"),
        (manifest.cache, "cache", can.caches, every_form),
    ):
        if kind not in accepted:
            raise LucidError(
                f"{title} takes artifacts whose {what} is {_listed(accepted)}, and that of {path} is {kind}. Export "
                f"{remedy}, or choose another --runtime."
            )
    if manifest.graph_form not in can.graphs:
        has = "functions that it does not know"
        if manifest.inline:
            has = "none of the operators that it has kernels for, since they were inlined"
        raise LucidError(
            f"{title} cannot run the graphs of {path}: they have {has}. Export {every_form}, or choose another "
            "--runtime."
        )
    for index, layer in enumerate(manifest.layers):
        for tensor in layer.cache:
            if tensor.sort not in can.cache_sorts:
                raise LucidError(
                    f"{title} supports cached tensors of the sort {_listed(can.cache_sorts)}; {tensor.name} of layer "
                    f"{index} ({layer.kind}) in {path} is of the sort {tensor.sort}. Choose another --runtime."
                )
    if manifest.cache_dtype not in (manifest.dtype, *can.cache_dtypes):
        types = _listed(("the model's type", *can.cache_dtypes))
        raise LucidError(
            f"{title} stores the cache in {types}, and that of {path} is in {manifest.cache_dtype}. Export with "
            "--cache-dtype auto, or choose another --runtime."
        )


def _title(options: RuntimeOptions) -> str:
    """Return the runtime's name for messages, with the options that change what it can do."""
    special = [f"{flag(key)} {value}" for key, value in options.given().items() if key not in _EVERYWHERE | {"threads"}]
    return f"Runtime {options.runtime}" + (f" with {' '.join(special)}" if special else "")


def _listed(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last

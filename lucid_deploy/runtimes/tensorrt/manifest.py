"""``engines.json``, the engines' manifest: sources, versions and limits they were built with; it is read first."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from lucid_deploy.artifact import ADAPTERS, STAGES, VERIFY, WEIGHTS, Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes.session import Limits
from lucid_deploy.runtimes.tensorrt.backend import BACKENDS
from lucid_deploy.runtimes.tensorrt.limits import Range

FOLDER = "engines"  # in the artifact; one folder per backend below it
MANIFEST = "engines.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EngineFile:
    """One engine: its file, size in bytes, sha256, the shapes it accepts, and layers that plugins compute."""

    file: str
    size: int
    sha256: str
    profile: dict[str, Range]
    plugin_layers: dict[str, list[str]]


@dataclass(frozen=True)
class PluginFile:
    """The plugin library that engines were built with, copied beside them: file, size, sha256 and ABI number."""

    file: str
    size: int
    sha256: str
    abi: int


@dataclass(frozen=True)
class EngineManifest:
    """The content of ``engines.json``."""

    backend: str  # tensorrt-rtx or tensorrt
    backend_version: str  # engines of another version are not read
    toolkit_version: str  # version of lucid-deploy that built them
    capabilities: tuple[int, ...]  # compute capabilities they were built for, 86 for 8.6; (): all of the backend's
    limits: Limits  # the largest sizes they accept
    weightless: bool  # whether they take their weights from the artifact when they are loaded
    sources: dict[str, str]  # sha256 of the graphs, weights and adapters they were built from, by file
    plugin: PluginFile | None  # the plugin library; None for models that need none
    engines: dict[str, EngineFile]  # by stage; verify only with --speculate

    def to_json(self) -> str:
        """Return the text of ``engines.json``."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    def build_command(self, artifact: Artifact, changed: dict[str, Any]) -> str:
        """Return the command that builds the engines again with the same limits, except for options in ``changed``."""
        limits = {f"--{name.replace('_', '-')}": value for name, value in asdict(self.limits).items()}
        words = "".join(f" {name} {value}".rstrip() for name, value in (limits | changed).items())
        words += " --speculate" * (VERIFY in self.engines) + " --weightless" * self.weightless
        return f"lucid-deploy build {artifact.directory} --backend {self.backend}{words} --overwrite"


def engine_directory(artifact: Artifact, backend: str) -> Path:
    """Return the folder of a backend's engines."""
    return artifact.directory / FOLDER / backend


def source_hashes(artifact: Artifact) -> dict[str, str]:
    """Return the sha256 of the files that engines are built from, as in the manifest, and of the list of adapters."""
    names = (*(graph.file for graph in artifact.manifest.graphs.values()), WEIGHTS)
    hashes = {name: str(artifact.manifest.files[name]["sha256"]) for name in names}
    if artifact.manifest.adapters is not None:  # engines contain the adapters that existed at build time
        hashes[ADAPTERS] = hashlib.sha256(msgspec.json.encode(artifact.adapters())).hexdigest()
    return hashes


def file_facts(path: Path) -> dict[str, Any]:
    """Return file name, size and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "size": path.stat().st_size, "sha256": digest}


def open_engines(artifact: Artifact, backend: str, backend_version: str) -> EngineManifest:
    """Read the manifest; raise LucidError if no engines fit TensorRT and artifact, CheckFailed if files are damaged."""
    from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI

    folder = engine_directory(artifact, backend)
    again = f"Build them again: lucid-deploy build {artifact.directory} --backend {backend} --overwrite"
    manifest = _read(artifact, backend, folder, again)
    again = f"Build them again: {manifest.build_command(artifact, {})}"
    if manifest.backend_version != backend_version:
        raise LucidError(
            f"The engines in {folder} were built with {backend} {manifest.backend_version}, but {backend_version} is "
            f"installed, which does not read them. {again}"
        )
    wanted = source_hashes(artifact)
    if differing := [name for name, digest in wanted.items() if manifest.sources.get(name) != digest]:
        raise LucidError(
            f"The engines in {folder} were built from another model: {', '.join(differing)} differ. {again}"
        )
    if manifest.plugin is not None and manifest.plugin.abi != PLUGIN_ABI:
        raise LucidError(
            f"The engines in {folder} were built with plugin ABI {manifest.plugin.abi}, and this version has "
            f"{PLUGIN_ABI}. Run: lucid-deploy plugin build. {again}"
        )
    if manifest.plugin is not None:  # it is code to be loaded; engines are checked when they are read
        check_file(folder, manifest.plugin, again)
    return manifest


def check_file(folder: Path, entry: EngineFile | PluginFile, again: str) -> bytes:
    """Return the content of a file beside the engines' manifest; raise CheckFailed if it is missing or was changed."""
    path = folder / entry.file
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise CheckFailed(f"{path} is missing or was changed after it was built. {again}")
    return content


def _read(artifact: Artifact, backend: str, folder: Path, again: str) -> EngineManifest:
    path = folder / MANIFEST
    if not path.is_file():
        others = [name for name in BACKENDS if (engine_directory(artifact, name) / MANIFEST).is_file()]
        hint = f" (there are some for {' and '.join(others)})" if others else ""
        raise LucidError(
            f"{artifact.directory} has no engines for {backend}{hint}. "
            f"Build them: lucid-deploy build {artifact.directory} --backend {backend}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format_version")
        if version != FORMAT_VERSION:
            raise LucidError(f"{path} has format {version}, but this lucid-deploy reads {FORMAT_VERSION}. {again}")
        return _parse(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckFailed(f"{path} is damaged: {error!r}. {again}") from error


def _parse(data: dict[str, Any]) -> EngineManifest:
    if unknown := data.keys() - {field.name for field in fields(EngineManifest)}:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    manifest = msgspec.convert(data, EngineManifest)  # strict: a bool is not accepted as a number
    if set(manifest.engines) - {VERIFY} != set(STAGES):
        raise ValueError(f"engines are {sorted(manifest.engines)}, not {sorted(STAGES)}")
    plugin = [] if manifest.plugin is None else [manifest.plugin.file]
    for file in [*(entry.file for entry in manifest.engines.values()), *plugin]:
        if Path(file).name != file:
            raise ValueError(f"file {file!r} lies outside the folder")
    return manifest

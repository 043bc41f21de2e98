"""Open an artifact, check it without running a graph, and detect changes of its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.adapters import StoredAdapter, check_adapters, read_adapters
from lucid_deploy.artifact.external_data import StoredWeight, check_external_data, stored_weights
from lucid_deploy.artifact.manifest import MANIFEST, VERIFY, WEIGHTS, Manifest, form_name, read_manifest
from lucid_deploy.artifact.quantization import PACKED, PARTS, ROWS
from lucid_deploy.errors import CheckFailed, LucidError, in_one_line, reading
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import describe, drafts_unsupported_reason

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Artifact:
    """An opened artifact; create it with ``open_artifact``."""

    directory: Path
    manifest: Manifest
    # Graphs that were read, by file; the forms of an artifact share them.
    _graphs: dict[str, onnx.ModelProto] = field(default_factory=dict, compare=False, repr=False)

    @property
    def config(self) -> LucidConfig:
        return self.manifest.config

    @property
    def identity(self) -> str:
        """The sha256 of the configuration, type and weights, which tells models apart."""
        parts = [self.config.to_dict(), self.manifest.dtype, self.manifest.files[WEIGHTS]["sha256"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def path(self, name: str) -> Path:
        return self.directory / name

    def graph_path(self, stage: str) -> Path:
        """Return the path of the ``prefill``, ``decode`` or ``verify`` graph."""
        return self.directory / self.manifest.graphs[stage].file

    def graph(self, stage: str) -> onnx.ModelProto:
        """Return a stage's graph without the data of its weights. The graph is cached, so change only a copy."""
        file = self.manifest.graphs[stage].file
        if file not in self._graphs:
            self._graphs[file] = check_external_data(self.directory / file)
        return self._graphs[file]

    def form(self, cache: str | None = None, inline: bool | None = None) -> Artifact:
        """Return the artifact with one form of its graphs, after checking them; ``LucidError`` if it lacks the form.

        ``cache``: ``growing`` or ``static``; ``inline``: whether graphs have no functions. None: any, the first found.
        """
        for manifest in self.manifest.each_form():
            if cache in (None, manifest.cache) and inline in (None, manifest.inline):
                found = Artifact(self.directory, manifest, self._graphs)
                _check_graphs(found)
                return found
        wanted = form_name(cache or self.manifest.cache, self.manifest.inline if inline is None else inline)
        reason = self.manifest.forms_left_out.get(wanted)
        raise LucidError(
            f"{self.directory} has no {wanted} graphs"
            + (f": {reason}" if reason else ". Export it again without --cache and --inline, which writes every form.")
        )

    def adapters(self) -> tuple[StoredAdapter, ...]:
        """Read the list of adapters, which ``lucid-deploy adapters`` may have changed since the last call."""
        slots = self.manifest.adapters
        return () if slots is None else read_adapters(self.directory, slots)

    @property
    def writes_in_place(self) -> bool:
        """Whether decode writes rows into a static cache with ``TensorScatter``, as in opset 24."""
        return any(node.op_type == "TensorScatter" for node in self.graph("decode").graph.node)

    @property
    def drafts_unsupported_reason(self) -> str | None:
        """Why the artifact's graphs cannot verify drafted tokens, as a clause without a full stop; None if they can."""
        reason = drafts_unsupported_reason(self.manifest.layers)
        if reason is not None or VERIFY in self.manifest.graphs:
            return reason
        return "a static cache of opset 23 takes one new token a step; export without --opset 23"

    def weights(self, stage: str) -> tuple[StoredWeight, ...]:
        """Return where the weights of a stage's graph lie, in the graph's order."""
        return stored_weights(self.graph(stage))


def open_artifact(directory: str | Path) -> Artifact:
    """Open an artifact and check what is cheap: version, file sizes, layers, first form's graphs, list of adapters."""
    directory = Path(directory)
    artifact = Artifact(directory, read_manifest(directory))
    _check_files(artifact)
    return artifact


def _check_files(artifact: Artifact) -> None:
    directory, manifest = artifact.directory, artifact.manifest
    for name, facts in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise CheckFailed(f"{directory} is incomplete: {name} is missing. Export it again.")
        if path.stat().st_size != facts["size"]:
            raise CheckFailed(
                f"{path} has {path.stat().st_size} bytes, its manifest says {facts['size']}: it was cut or swapped. "
                "Export it again."
            )
    _check_layers(manifest, directory)
    artifact.adapters()
    _check_graphs(artifact)


def _check_graphs(artifact: Artifact) -> None:
    """Check the graphs of the artifact's first form against its manifest."""
    for stage in artifact.manifest.graphs:
        graph = artifact.graph(stage)
        try:
            _check_contract(artifact, stage, graph)
            _check_quantization(artifact, stage, graph)
        except (ValueError, TypeError, LookupError) as error:  # from protobuf, such as for names that are no text
            raise CheckFailed(f"{artifact.graph_path(stage)} is damaged: {in_one_line(error)}") from error


def check_hashes(artifact: Artifact, progress: Callable[[int, int], None] | None = None) -> None:
    """Check every file's sha256 in the manifest, and the one in ``adapters.bin``; raise ``CheckFailed`` if one differs.

    ``progress`` is called with (bytes read, bytes in all).
    """
    total = sum(facts["size"] for facts in artifact.manifest.files.values())
    read, wrong = 0, []
    for name, facts in artifact.manifest.files.items():
        digest = hashlib.sha256()
        with reading(artifact.path(name)), artifact.path(name).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                read += len(block)
                if progress is not None:
                    progress(read, total)
        if digest.hexdigest() != facts["sha256"]:
            wrong.append(name)
    if artifact.manifest.adapters is not None:
        check_adapters(artifact.directory, artifact.manifest.adapters)
    if wrong:
        raise CheckFailed(
            f"{artifact.directory}: sha256 of {', '.join(wrong)} differs from the manifest: changed after the export. "
            "Export it again."
        )


def _check_layers(manifest: Manifest, directory: Path) -> None:
    """Check that the manifest's layers have the kinds and caches that follow from its configuration."""
    recorded = [(layer.kind, layer.cache) for layer in manifest.layers]
    if recorded != [(layer.kind, layer.cache) for layer in describe(manifest.config, manifest.cache_dtype)]:
        raise CheckFailed(
            f"{directory}: what the layers cache does not fit {MANIFEST}'s configuration, which was changed after the "
            "export. Export it again."
        )


def _check_contract(artifact: Artifact, stage: str, model: onnx.ModelProto) -> None:
    """Check that a graph's inputs and outputs have the manifest's names and shapes, and that these fit its model."""

    def described(values: Any) -> list[tuple[str, tuple[int | str, ...]]]:
        return [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]

    info = artifact.manifest.graphs[stage]
    graph = [*described(model.graph.input), *described(model.graph.output)]
    listed = [(item.name, item.shape) for item in (*info.inputs, *info.outputs)]
    cache = [
        (item.name, item.dtype, *_sizes(item.shape)) for item in info.inputs if item.name.startswith("past_key_values.")
    ]
    wanted = [
        (f"past_key_values.{index}.{tensor.name}", tensor.dtype, *_sizes(tensor.axes("tokens")))
        for index, layer in enumerate(artifact.manifest.layers)
        for tensor in layer.cache
    ]
    static = any(item.name == "cache_length" for item in info.inputs)
    by_row = any(item.name == "adapter_ids" for item in info.inputs)
    fits = (
        graph == listed
        and cache == wanted
        and info.outputs[0].shape[-1] == artifact.config.vocab_size
        and (info.inputs[0].shape[-1] == 1) == (stage == "decode")
        and static == (stage != "prefill" and artifact.manifest.cache == "static")
        and by_row == (artifact.manifest.adapters is not None)
    )
    if not fits:
        raise CheckFailed(
            f"{artifact.graph_path(stage)} does not fit {MANIFEST}: inputs and outputs are those of another model or "
            "stage. Export it again."
        )


def _sizes(shape: tuple[int | str, ...]) -> tuple[int | None, ...]:
    """Return a shape without the names of its dynamic axes."""
    return tuple(None if isinstance(axis, str) else axis for axis in shape)


def _check_quantization(artifact: Artifact, stage: str, model: onnx.ModelProto) -> None:
    """Compare the quantized weights of a graph with the manifest's record."""
    from onnx import TensorProto

    record = artifact.manifest.quantization
    found = {
        tensor.name: (TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.name.endswith(PARTS)
    }
    wanted = {}
    for name in record.tensors if record is not None else ():
        assert record is not None
        numbers = [part for part in (PACKED, ROWS) if name + part in found] or [PACKED]  # embeddings are read as ROWS
        for part in (*numbers, *record.parts(name)[1:]):
            kind = record.part_dtype(name, part, artifact.manifest.dtype)
            wanted[name + part] = ("FLOAT" if kind == "float32" else kind.upper(), record.part_shape(name, part))
    if found != wanted:
        differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise CheckFailed(
            f"{artifact.graph_path(stage)} has other quantized weights than {MANIFEST} records: "
            f"{', '.join(differing[:5])}. Export it again."
        )


_Identity = tuple[int, int, int, int]


class ArtifactWatch:
    """Detect changes of an artifact's files, ``adapters.bin`` aside, by device, inode, size and modification time.

    A runtime may map the weights into memory; then a change of the file changes the model at once. Create the watch
    before the weights are read.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._files = {path: _identity(path) for path in map(artifact.path, [MANIFEST, *artifact.manifest.files])}

    def check(self) -> None:
        """Raise ``CheckFailed`` if a file changed since the watch was made; takes some microseconds for each file."""
        for path, known in self._files.items():
            if _identity(path) != known:
                raise CheckFailed(
                    f"{path.parent.name}/{path.name} changed while it was in use: what the model computes may be "
                    "wrong. Restore the artifact and start again."
                )


@contextmanager
def unchanged(artifact: Artifact) -> Iterator[None]:
    """Raise ``CheckFailed`` after a ``with`` block if the artifact changed meanwhile: results may mix two artifacts."""
    watch, adapters = ArtifactWatch(artifact), artifact.adapters()
    try:
        yield
    except Exception:
        watch.check()  # clearer than a library's error about parts of two artifacts
        raise
    watch.check()
    # Was it replaced before the watch was made, or were its adapters, which are not watched?
    if read_manifest(artifact.directory).files != artifact.manifest.files or artifact.adapters() != adapters:
        raise CheckFailed(f"{artifact.directory} was replaced while it was read. Run the command again.")


def _identity(path: Path) -> _Identity | None:
    try:
        facts = os.stat(path)
    except OSError:  # removed or unreachable: counts as a change
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns

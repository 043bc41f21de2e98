"""From a checkpoint to an artifact: trace, attach functions, share weights, write atomically."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import (
    CACHES,
    DTYPES,
    MANIFEST,
    STAGES,
    WEIGHTS,
    Artifact,
    GraphInfo,
    Manifest,
    open_artifact,
)
from lucid_deploy.cache.storage import resolve_cache_dtype
from lucid_deploy.errors import LucidError
from lucid_deploy.export.tokenizer import check_tokenizer, copy_companions
from lucid_deploy.files import missing_directories, partial_directory, put_in_place, remove_empty
from lucid_deploy.plugins.table import DIAGONALS, UNIT
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.export.diagonal import DiagonalEffect
    from lucid_deploy.export.quantize_options import QuantizeOptions
    from lucid_deploy.export.rounding.unfinished import LearnedWeights
    from lucid_deploy.export.trace import Traced
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.description import LayerDescription
    from lucid_deploy.model.hub import HubOptions

Progress = Callable[[str, int, int], None]

STATE_TYPES = ("float32", "model")  # how a recurrent state may be kept


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        dtype: Type of weights and arithmetic: ``float32``, ``float16`` or ``bfloat16``.
        logits: ``last`` or ``all`` of a prefill's tokens.
        cache: ``growing`` (present tensors are past ones plus the new rows) or ``static`` (decode writes its row in
            place into buffers that the client allocates).
        overwrite: Whether an existing artifact at the output may be replaced.
        cache_dtype: Type of the cache: ``auto`` (the model's), ``float16``, ``int8`` or ``fp8``.
        quantize: How to quantize weights; None: not at all.
        range_scan: Whether to run the checkpoint before: to see that no value overflows float16, and what the diagonal
            of L costs. Without, a float16 artifact records that.
        calibration: A text file whose lines the scan runs too, and that ``quantize`` learns from.
        assume_unused: Keys of the checkpoint's configuration that are not known here, and change nothing.
        inline: Write graphs without functions, the operators' bodies in their places, for runtimes that know none.
        opset: Version of ONNX's standard operators: 23, or 24 with a static cache, whose rows are then written by
            TensorScatter, which older runtimes do not have. None: the newer.
        state_dtype: Type of recurrent states in the cache: ``float32``, or ``model``, that of ``dtype``.
        diagonal: Diagonal of L in LUCID layers: ``unit``, or ``training``, what the authors' training code divides by.
        hub: How to download a checkpoint that is named ``org/name``; None: huggingface_hub's own settings.
    """

    dtype: str = "float32"
    logits: str = "last"
    overwrite: bool = False
    cache: str = "growing"
    cache_dtype: str = "auto"
    quantize: QuantizeOptions | None = None
    range_scan: bool = True
    calibration: Path | None = None
    assume_unused: tuple[str, ...] = ()
    hub: HubOptions | None = None
    inline: bool = False
    diagonal: str = UNIT
    state_dtype: str = "float32"
    opset: int | None = None

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest says of them: all that decides what is exported."""
        left_out = {"overwrite", "hub"}  # where a checkpoint of the Hub comes from is recorded in its own field
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}
        return {**fields, "calibration": None if self.calibration is None else str(self.calibration)}


def export(
    checkpoint: str | Path, output: str | Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Artifact:
    """Export a checkpoint. The output directory appears complete or not at all.

    Args:
        checkpoint: A directory, the word ``demo``, or a model of the Hugging Face Hub, ``org/name``.
        output: The directory to make.
        options: See :class:`ExportOptions`.
        progress: Called with (what is being done, steps or bytes done, in all).

    Returns:
        The artifact, opened.

    Raises:
        LucidError: A checkpoint that can't be read or overflows float16, an output that exists, unknown options, a
            full disk.
    """
    from lucid_deploy.model.checkpoint import Checkpoint

    options = options or ExportOptions()
    output = Path(output)
    _check_request(output, options)
    checkpoint, hub = _fetched(checkpoint, options, progress)
    states = options.dtype if options.state_dtype == "model" else None
    source = Checkpoint(checkpoint, options.assume_unused, options.diagonal, states)
    _check_assumed(source, options.assume_unused)
    _check_target(source.directory, output)
    check_tokenizer(source.directory)
    # Imported before anything is made: Ctrl-C within the import of onnx's C++ module crashes the process.
    import lucid_deploy.export.graph_file
    import lucid_deploy.export.trace  # noqa: F401
    from lucid_deploy.export.numbers import learned_numbers, plan_numbers, rows_to_learn_from, settle_options
    from lucid_deploy.export.rounding.folding import with_scales

    options = dataclasses.replace(options, quantize=settle_options(source, options.quantize, options.dtype))
    quantization = rows = None
    if options.quantize is not None:  # before anything that takes time: a glob may match nothing
        quantization = plan_numbers(source, options.quantize, options.dtype)
        rows = rows_to_learn_from(source, options.quantize, quantization, options.calibration)
    ranges, effect = _scan_ranges(source, options, quantization, progress)
    said = (effect.sentence,) if effect is not None and effect.sentence and not _is_demo(checkpoint) else ()
    made = missing_directories(output.parent)
    learning = (source, options.quantize, quantization, rows, options.dtype, output, progress)
    try:
        _make_parent(output)
        with learned_numbers(*learning) as (found, learned), _made(output) as building:
            if learned is not None and learned.folded and ranges is not None and options.range_scan:
                # scales of inputs make some values larger
                ranges, _ = _scan_ranges(with_scales(source, learned.folded), options, found, progress)
            _build(
                source,
                str(checkpoint),
                building,
                options,
                progress or (lambda *_: None),
                ranges,
                found,
                hub,
                said,
                learned,
            )
            _check_request(output, options)  # again: tracing and writing took a while
            put_in_place(building, output)
    except OSError as error:
        left = " ".join(getattr(error, "__notes__", ["Nothing was left behind."]))
        raise LucidError(f"Writing {output} failed: {error.strerror or error}. {left}") from error
    finally:
        remove_empty(made)
    return open_artifact(output)


def _make_parent(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LucidError(f"{output} cannot be made: {error.strerror} ({error.filename}).") from error


@contextmanager
def _made(output: Path) -> Iterator[Path]:
    """Yield the directory to fill in place of the output; it is gone at the end, whatever happens."""
    with ExitStack() as stack:
        try:
            building = stack.enter_context(partial_directory(output))
        except OSError as error:
            raise LucidError(f"{output} cannot be made: {error.strerror} ({error.filename}).") from error
        yield building


def _check_request(output: Path, options: ExportOptions) -> None:
    if options.dtype not in DTYPES:
        raise LucidError(f"dtype {options.dtype!r} is not supported; supported are {', '.join(DTYPES)}.")
    if options.logits not in ("last", "all"):
        raise LucidError(f"logits must be last or all, not {options.logits!r}.")
    if options.cache not in CACHES:
        raise LucidError(f"cache must be {' or '.join(CACHES)}, not {options.cache!r}.")
    _check_opset(options)
    if options.state_dtype not in STATE_TYPES:
        raise LucidError(f"state_dtype must be {' or '.join(STATE_TYPES)}, not {options.state_dtype!r}.")
    if options.diagonal not in DIAGONALS:
        raise LucidError(f"diagonal must be {' or '.join(DIAGONALS)}, not {options.diagonal!r}.")
    stored = resolve_cache_dtype(options.cache_dtype, options.dtype)
    if stored == "fp8" and options.cache == "static":
        raise LucidError(
            'A static cache is not kept in fp8: what writes a row in place takes no E4M3 in TensorRT ("must have type '
            'Float, Half, or BFloat16") and in onnxruntime. Export with --cache growing, or with --cache-dtype auto.'
        )
    if options.quantize is not None:
        from lucid_deploy.export.quantize_options import check_options

        check_options(options.quantize, options.dtype)
    if not output.exists():
        return
    if not options.overwrite:
        raise LucidError(f"{output} exists already. Choose another output, or pass --overwrite to replace it.")
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST).is_file()):
        raise LucidError(
            f"{output} is not an exported artifact, so --overwrite does not replace it. Remove it yourself."
        )


def _check_target(checkpoint: Path, output: Path) -> None:
    source, target = checkpoint.resolve(), output.resolve()
    if source == target or target in source.parents:
        raise LucidError(f"The output {output} would replace the checkpoint {checkpoint}. Choose another output.")
    if source in target.parents:
        raise LucidError(f"The output {output} lies inside the checkpoint {checkpoint}. Choose another output.")


def _fetched(
    checkpoint: str | Path, options: ExportOptions, progress: Progress | None
) -> tuple[str | Path, dict[str, str] | None]:
    """Return a checkpoint of this machine, and for one that was downloaded where it comes from."""
    from lucid_deploy.model.hub import HubOptions, fetch, is_on_hub

    hub = options.hub or HubOptions()
    if not is_on_hub(checkpoint, hub):
        return checkpoint, None
    return fetch(str(checkpoint), hub, options.assume_unused, progress)


def _check_assumed(source: Checkpoint, assume_unused: tuple[str, ...]) -> None:
    """Refuse keys that need no assumption: a misspelt one would look like a checked one in the manifest."""
    needless = [key for key in assume_unused if key not in source.assumed_unused]
    if needless:
        raise LucidError(
            f"{source.directory / 'config.json'} has no unknown key {' or '.join(needless)}: leave out "
            f"{' '.join(f'--assume-unused {key}' for key in needless)}, or correct its spelling."
        )


def _is_demo(checkpoint: str | Path) -> bool:
    """Whether it is the bundled model, which was trained with 1 on the diagonal."""
    from lucid_deploy.model.checkpoint import DEMO, resolve

    return resolve(checkpoint).resolve() == resolve(DEMO)


def _has_float32_head(source: Checkpoint, quantization: Quantization | None) -> bool:
    return quantization is None or source.stored_name("lm_head.weight") not in quantization.tensors


def _ways_to_read(options: ExportOptions) -> str:
    """Say what would read a calibration text, first what docs/low-precision.md recommends."""
    form = "--quantize-format qdq " if options.dtype == "bfloat16" else ""  # onnxruntime's operators have no bfloat16
    learning = {None: f"--quantize int4 {form}--method gptq", "int4": "--method gptq", "int8": "--method gptq"}
    scheme = None if options.quantize is None else options.quantize.scheme
    found = [f"{learning[scheme]}, which learns from it"] if scheme in learning else []
    found += ["--dtype float16, whose range scan runs its lines"] if options.dtype != "float16" else []
    return f"Add {', or '.join(found)}; or leave it out." if found else "Leave it out."


def _scan_ranges(
    source: Checkpoint, options: ExportOptions, quantization: Quantization | None, progress: Progress | None
) -> tuple[dict[str, Any] | None, DiagonalEffect | None]:
    """Refuse a model whose values overflow float16; return what the manifest says, None where nothing is float16.

    With it comes what training's diagonal would change; None where it is not measured, or is what is exported.
    """
    from lucid_deploy.export.range_scan import measure_diagonal

    learns = options.quantize is not None and options.quantize.learns
    asked = options.range_scan and options.diagonal == UNIT
    stored = resolve_cache_dtype(options.cache_dtype, options.dtype)
    if "float16" not in (options.dtype, stored):
        if options.calibration is not None and not learns:
            raise LucidError(f"Nothing reads --calibration {options.calibration}. {_ways_to_read(options)}")
        return None, measure_diagonal(source, progress) if asked else None
    if not options.range_scan:
        if options.calibration is not None and not learns:
            raise LucidError(
                f"Nothing reads --calibration {options.calibration}: --skip-range-scan leaves the range scan out. "
                f"{_ways_to_read(options)}"
            )
        return {"skipped": True}, None
    from lucid_deploy.export.range_scan import CACHED, HEAD, ORDER, scan

    whole = options.dtype == "float16"
    checked: tuple[str, ...] = CACHED
    if whole:
        checked = (*ORDER, *HEAD[: 1 if _has_float32_head(source, quantization) else 2])
    found = scan(source, options.calibration, checked, progress)
    found.check(
        source.directory,
        "Export with --dtype bfloat16 or float32." if whole else "Export with --cache-dtype auto or int8.",
    )
    return found.to_dict(), found.diagonal if asked else None


def _build(
    source: Checkpoint,
    name: str,
    building: Path,
    options: ExportOptions,
    progress: Progress,
    ranges: dict[str, Any] | None,
    quantization: Quantization | None,
    hub: dict[str, str] | None,
    said: tuple[str, ...],
    learned: LearnedWeights | None,
) -> None:
    """Fill the directory ``building`` with the artifact's files."""
    from lucid_deploy.artifact.folded_scales import write_scales
    from lucid_deploy.export import genai
    from lucid_deploy.export.graph_file import other_names, write_graph
    from lucid_deploy.export.operators import opset_of
    from lucid_deploy.export.passes import quantize_weights
    from lucid_deploy.export.trace import trace
    from lucid_deploy.export.weights import plan_weights, write_weights
    from lucid_deploy.model.checkpoint import DEMO
    from lucid_deploy.plugins.table import VERSION

    shapes = source.stored_shapes()
    traced: dict[str, Traced] = {}
    for step, stage in enumerate(STAGES):
        progress(f"Tracing {stage}", step, len(STAGES))
        traced[stage] = trace(
            source.config,
            stage,
            options.dtype,
            options.logits,
            options.cache,
            options.cache_dtype,
            float32_head=_has_float32_head(source, quantization),
            opset=options.opset,
        )
    progress("Tracing", len(STAGES), len(STAGES))
    transposed = {frozenset(graph.transposed) for graph in traced.values()}
    assert len(transposed) == 1, "prefill and decode must read the shared weights in one layout"
    if quantization is not None:
        for graph in traced.values():
            quantize_weights(graph.model, quantization, other_names(graph.model, shapes))
    plan = plan_weights(shapes, set(*transposed), options.dtype, quantization)
    digest = write_weights(
        building / WEIGHTS,
        plan,
        source,
        quantization,
        lambda done, total: progress("Writing weights", done, total),
        None if learned is None else learned.parts,
        {} if learned is None else learned.folded,
    )
    write_scales(building, {} if learned is None else learned.folded)
    graphs = {}
    for stage, graph in traced.items():
        file = f"{stage}.onnx"
        write_graph(building / file, graph.model, plan, options.inline)
        graphs[stage] = GraphInfo(file, graph.inputs, graph.outputs)
    tokenizer_notes = copy_companions(source.directory, building)
    manifest = Manifest(
        config=source.config,
        dtype=options.dtype,
        cache=options.cache,
        logits=options.logits,
        opset=options.opset or opset_of(options.cache),
        operators=VERSION,
        source=DEMO if name == DEMO else str(source.directory.resolve()),
        versions=_versions(),
        graphs=graphs,
        cache_dtype=resolve_cache_dtype(options.cache_dtype, options.dtype),
        ranges=ranges,
        quantization=quantization,
        layers=_described(source, options),
        transposed=tuple(sorted(set(*transposed) - set(() if quantization is None else quantization.tensors))),
        float32_head=_has_float32_head(source, quantization),
        notes=(*source.notes, *said, *tokenizer_notes),
        assumed_unused=source.assumed_unused,
        hub=hub,
        options=options.recorded(),
        inline=options.inline,
    )
    if genai.is_supported(manifest):
        settings = genai.genai_config(manifest, building)
        (building / genai.FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    manifest = dataclasses.replace(manifest, files=_file_facts(building, {WEIGHTS: digest}))
    (building / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _check_opset(options: ExportOptions) -> None:
    from lucid_deploy.export.operators import OPSET, opset_of

    allowed = sorted({OPSET, opset_of(options.cache)})
    if options.opset is not None and options.opset not in allowed:
        raise LucidError(
            f"Graphs with a {options.cache} cache are written in opset {' or '.join(map(str, allowed))}, not "
            f"{options.opset}."
        )


def _described(source: Checkpoint, options: ExportOptions) -> tuple[LayerDescription, ...]:
    """Describe the layers as the graphs have them: inlined ones use no operators of ours."""
    from lucid_deploy.model.description import describe

    layers = describe(source.config, resolve_cache_dtype(options.cache_dtype, options.dtype))
    return tuple(dataclasses.replace(layer, operators={}) for layer in layers) if options.inline else layers


def _file_facts(directory: Path, known: dict[str, str]) -> dict[str, dict[str, object]]:
    return {
        path.name: {
            "size": path.stat().st_size,
            "sha256": known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(directory.iterdir())
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnx-ir")
    return {"lucid-deploy": __version__, **{name: importlib.metadata.version(name) for name in packages}}

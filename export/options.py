"""The options of an export, and the checks before anything is written."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import CACHES, DTYPES, MANIFEST, OPSET_TENSOR_SCATTER
from lucid_deploy.cache.storage import resolve_cache_dtype
from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import read_text
from lucid_deploy.export.companions import check_tokenizer
from lucid_deploy.plugins.table import DIAGONALS, UNIT

if TYPE_CHECKING:
    from lucid_deploy.export.quantize.options import QuantizeOptions
    from lucid_deploy.model.checkpoint import Checkpoint

NO_STATIC_FP8 = (
    "A static cache cannot be in fp8: the operator that writes a row in place has no kernel for E4M3 in TensorRT "
    '("must have type Float, Half, or BFloat16") or onnxruntime.'
)
STATE_TYPES = ("float32", "model")  # types in which recurrent states may be cached; model: the model's own


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        dtype: Type of weights and arithmetic: ``float32``, ``float16`` or ``bfloat16``.
        logits: Which of a prefill's tokens get logits, ``last`` or ``all``.
        cache: Write graphs with this cache only: ``growing`` (present tensors are past ones plus the new rows) or
            ``static`` (decode writes its row in place into buffers that the client allocates). None: all forms that the
            model allows, unless ``inline`` is given.
        overwrite: Whether an existing artifact at the output may be replaced.
        cache_dtype: Type of the cache: ``auto`` (the model's), ``float16``, ``int8`` or ``fp8``.
        quantize: How to quantize weights; None: not at all.
        calibration: A text file that ``quantize`` learns from.
        assume_unused: Keys of the checkpoint's configuration that are unknown here and, the user says, change nothing.
        inline: Write only graphs in which our operators are replaced by their function bodies, for runtimes without
            ONNX functions; their cache is growing unless ``cache`` says otherwise.
        opset: Version of ONNX's standard operators in graphs with a static cache: 23, or 24, which writes rows with
            TensorScatter; older runtimes lack it. None: 24. Other graphs have 23.
        state_dtype: Type of recurrent states in the cache: ``float32``, or ``model``, that of ``dtype``.
        diagonal: Diagonal of L in LUCID layers: ``unit``, or ``training``, what the authors' training code divides by.
        merge_adapter: Directory of a LoRA adapter of PEFT that is added to the weights; None: none.
        adapters: Names and directories of LoRA adapters that are kept apart from the weights, so that each row of a
            batch may have its own.
        max_adapters: How many adapters the artifact has room for; None: those that are given. With a number, any linear
            layer may get an adapter later, except a tied head and layers in mixtures of experts.
        max_adapter_rank: The largest rank there is room for; None: the given adapters' largest, or 16 without any.
        trust_remote_code: Whether code that lies beside the weights may be run, where transformers has no class.
        revision: Branch, tag or commit of a checkpoint that is named ``org/name``; None: main.
    """

    dtype: str = "float32"
    logits: str = "last"
    overwrite: bool = False
    cache: str | None = None
    cache_dtype: str = "auto"
    quantize: QuantizeOptions | None = None
    calibration: Path | None = None
    assume_unused: tuple[str, ...] = ()
    revision: str | None = None
    inline: bool = False
    diagonal: str = UNIT
    state_dtype: str = "float32"
    opset: int | None = None
    merge_adapter: Path | None = None
    adapters: tuple[tuple[str, Path], ...] = ()
    max_adapters: int | None = None
    max_adapter_rank: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.quantize is not None:
            quantize = dataclasses.replace(self.quantize, has_text=self.calibration is not None)
            object.__setattr__(self, "quantize", quantize)

    @property
    def every_form(self) -> bool:
        """Whether all forms of the graphs are requested (growing, static, inlined); unsupported ones are left out."""
        return self.cache is None and not self.inline

    @property
    def stored_cache_dtype(self) -> str:
        """Type in which K and Y are cached; ``LucidError`` if ``cache_dtype`` does not fit ``dtype``."""
        return resolve_cache_dtype(self.cache_dtype, self.dtype)

    def opset_for(self, cache: str) -> int:
        """Return the version of the standard operators in graphs with this cache."""
        from lucid_deploy.export.operators import OPSET

        return (self.opset or OPSET_TENSOR_SCATTER) if cache == "static" else OPSET

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest records as ``options``: not ``overwrite``, ``revision`` or those of adapters."""
        left_out = {
            "overwrite",
            "revision",
            "merge_adapter",
            "adapters",
            "max_adapters",
            "max_adapter_rank",
        }
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}
        return {**fields, "calibration": None if self.calibration is None else str(self.calibration)}


def check_request(output: Path, options: ExportOptions) -> None:
    """Check the request as far as possible without the checkpoint."""
    _check_names(options)
    _check_opset(options)
    if options.calibration is not None:
        read_text(options.calibration)
    if options.stored_cache_dtype == "fp8" and options.cache == "static":
        raise LucidError(f"{NO_STATIC_FP8} Export with --cache growing, or with --cache-dtype auto.")
    if options.quantize is not None:
        from lucid_deploy.export.quantize.options import check_options

        check_options(options.quantize, options.dtype)
    check_output(output, options.overwrite)


def _check_names(options: ExportOptions) -> None:
    if options.dtype not in DTYPES:
        raise LucidError(f"dtype {options.dtype!r} is not supported; supported are {', '.join(DTYPES)}.")
    if options.logits not in ("last", "all"):
        raise LucidError(f"logits must be last or all, not {options.logits!r}.")
    if options.cache not in (None, *CACHES):
        raise LucidError(f"cache must be {' or '.join(CACHES)}, not {options.cache!r}.")
    if options.state_dtype not in STATE_TYPES:
        raise LucidError(f"state_dtype must be {' or '.join(STATE_TYPES)}, not {options.state_dtype!r}.")
    if options.diagonal not in DIAGONALS:
        raise LucidError(f"diagonal must be {' or '.join(DIAGONALS)}, not {options.diagonal!r}.")


def _check_opset(options: ExportOptions) -> None:
    from lucid_deploy.export.operators import OPSET

    has_static = options.every_form or options.cache == "static"
    allowed = (OPSET, OPSET_TENSOR_SCATTER) if has_static else (OPSET,)
    if options.opset is not None and options.opset not in allowed:
        form = "static" if has_static else "growing"
        raise LucidError(
            f"Graphs with a {form} cache are written in opset {' or '.join(map(str, allowed))}, not {options.opset}."
        )


def check_output(output: Path, overwrite: bool) -> None:
    """Check that nothing exists at the output or, with ``overwrite``, only an artifact or an empty folder."""
    if not os.path.lexists(output):  # a broken link counts as existing
        return
    if not overwrite:
        raise LucidError(f"{output} exists already. Choose another output, or pass --overwrite to replace it.")
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST).is_file()):
        raise LucidError(
            f"{output} is not an exported artifact, so --overwrite does not replace it. Remove it yourself."
        )


def check_target(checkpoint: Path, output: Path) -> None:
    """Check that the output is not the checkpoint, a folder in it, or a folder that contains it."""
    source, target = checkpoint.resolve(), output.resolve()
    if source == target or target in source.parents:
        raise LucidError(f"The output {output} would replace the checkpoint {checkpoint}. Choose another output.")
    if source in target.parents:
        raise LucidError(f"The output {output} lies inside the checkpoint {checkpoint}. Choose another output.")


def check_source(source: Checkpoint, output: Path, options: ExportOptions) -> None:
    """Check ``assume_unused``, the output and the tokenizer against the checkpoint, without reading its weights."""
    needless = [key for key in options.assume_unused if key not in source.assumed_unused]
    if needless:  # the manifest's options would list a misspelt key too
        raise LucidError(
            f"{source.directory / 'config.json'} has no unknown key {' or '.join(needless)}: leave out "
            f"{' '.join(f'--assume-unused {key}' for key in needless)}, or correct its spelling."
        )
    check_target(source.directory, output)
    check_tokenizer(source.directory)

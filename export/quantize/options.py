"""The options of quantization, and the checks that do not need the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from lucid_deploy.artifact.quantization import (
    ACTIVATIONS,
    BLOCK_SIZES,
    DISTILL,
    FLOAT_SCHEMES,
    FORMATS,
    HQQ,
    NEAREST,
    SCHEMES,
    STORED,
    WHOLE_SCHEMES,
)
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.method import QuantizationMethod, find_method
from lucid_deploy.export.quantize.nearest import nearest_kernel

# Chosen by measurement, see docs/quantization.md.
DEFAULT_BLOCK = {"int8": 32, "int4": 32}
BEST_HEAD_BITS = 8  # bits of lm_head and other weights that gain most from 8 bits, for int4 without --method
# This many first rows of a tied embedding get 8 bits if it has at least twice as many: frequent tokens have low ids.
FREQUENT_ROWS = 16384
CALIBRATION_TOKENS = 16384
FEW_TOKENS = 16384  # warn if a calibration text has fewer tokens: the learned weights may not generalize


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        scheme: ``int8``, ``int4``, ``fp8`` or ``nvfp4``; or ``stored``: the quantized values of a checkpoint that is
            already quantized.
        format: ``matmulnbits``, ``qdq``, or ``auto``: ``qdq`` for ``fp8``, ``nvfp4`` and FP8 checkpoints, else
            ``matmulnbits``, since onnxruntime is the default runtime.
        block_size: The most elements that share a scale; None: 32. For 8-bit weights of int4 it is always up to 128.
        keep_float: Globs of weights that are not quantized, such as ``layers.*.k_proj`` or ``lm_head``.
        embeddings: Quantize the embedding too. A tied embedding is the same weight as the head and follows the head.
        activations: ``int8``, ``float``, or ``auto``: ``float`` for ``fp8``, ``nvfp4`` and models with experts, as an
            FP8 checkpoint specifies, else ``int8``; see ``lucid_deploy.artifact.quantization.Quantization``.
        method: One of :func:`~lucid_deploy.export.quantize.method.method_names`. Empty: for int4 in ``matmulnbits``,
            ``distill`` with a calibration text and ``hqq`` without, with 8 bits for weights that need them; otherwise
            ``rtn``.
        has_text: Whether there is a calibration text; ``ExportOptions`` sets it.
        calibration_tokens: The most tokens of that text to learn from.
        equalize: Equalize the magnitudes of weights' columns before rounding. None: only for int8 and int4 in
            ``matmulnbits`` if ``method`` is empty.
        head_bits: Bits of ``lm_head`` and of an embedding tied to it; None: the scheme's, or see ``method``.
        frequent_rows: Number of first rows of a quantized embedding that get 8 bits. 0: chosen by the export for int4
            in ``matmulnbits`` if neither ``method`` nor ``head_bits`` is given, otherwise none.
    """

    scheme: str
    format: str = "auto"
    block_size: int | None = None
    keep_float: tuple[str, ...] = ()
    embeddings: bool = False
    activations: str = "auto"
    method: str = ""
    has_text: bool = False
    calibration_tokens: int = CALIBRATION_TOKENS
    equalize: bool | None = None
    head_bits: int | None = None
    frequent_rows: int = 0

    @property
    def is_float(self) -> bool:
        """Whether weights are quantized to a floating-point format."""
        return self.scheme in FLOAT_SCHEMES

    @property
    def chosen_format(self) -> str:
        """The format; ``auto`` means ``qdq`` for floating-point schemes, else ``matmulnbits``."""
        if self.format == "auto":
            return "qdq" if self.is_float else "matmulnbits"
        return self.format

    @property
    def chosen_method(self) -> QuantizationMethod:
        """The named method, else the recommended one for int4 in ``matmulnbits``, else ``rtn``."""
        best = DISTILL if self.has_text else HQQ
        return find_method(self.method or (best if self.takes_best else NEAREST))

    @property
    def chosen_activations(self) -> str:
        """The activations; ``auto`` means ``float`` for floating-point schemes, else ``int8``."""
        if self.activations == "auto":
            return "float" if self.is_float else "int8"
        return self.activations

    @property
    def takes_best(self) -> bool:
        """Whether the recommended method is used: for int4 in ``matmulnbits``, if no method is named."""
        return not self.method and self.scheme == "int4" and self.chosen_format == "matmulnbits"

    @property
    def equalizes(self) -> bool:
        """Whether columns are equalized; by default for int8 and int4 in ``matmulnbits`` if no method is named."""
        if self.equalize is not None:
            return self.equalize
        return not self.method and self.scheme in WHOLE_SCHEMES and self.chosen_format == "matmulnbits"


def check_options(options: QuantizeOptions, dtype: str) -> None:
    """Check options as far as possible without the checkpoint; raise ``LucidError`` for invalid ones."""
    for name, value, known in (
        ("quantize", options.scheme, (*SCHEMES, STORED)),
        ("quantize-format", options.format, ("auto", *FORMATS)),
        ("activations", options.activations, ("auto", *ACTIVATIONS)),
    ):
        if value not in known:
            raise LucidError(f"--{name} must be one of {', '.join(known)}, not {value!r}.")
    if options.block_size is not None and options.block_size not in BLOCK_SIZES:
        raise LucidError(
            f"--block-size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {options.block_size}: runtimes have "
            "kernels only for these sizes."
        )
    if options.scheme != STORED or options.format != "auto":  # else the checkpoint decides the format
        check_kernels(options.chosen_format, dtype)
    if options.embeddings and options.chosen_format == "qdq":
        raise LucidError(
            "In the format qdq, the whole embedding would be dequantized for every token. Leave out "
            "--quantize-embeddings, or export with --quantize-format matmulnbits."
        )
    if options.calibration_tokens < 1:
        raise LucidError(f"--calibration-tokens must be 1 or more, not {options.calibration_tokens}.")
    if (options.head_bits or 8) not in WHOLE_SCHEMES.values():
        raise LucidError(f"--head-bits must be 8 or 4, not {options.head_bits}.")
    if options.scheme == STORED:
        _check_stored(options)
    elif options.is_float:
        _check_float(options)
    else:
        _check_learning(options)
        nearest_kernel(options.scheme)


def check_kernels(form: str, dtype: str) -> None:
    """Raise ``LucidError`` if onnxruntime has no kernels for a format in graphs of this dtype."""
    if dtype == "bfloat16" and form != "qdq":
        raise LucidError(
            "Quantized weights in bfloat16 graphs are for TensorRT: onnxruntime's MatMulNBits has no bfloat16 kernel "
            "on the CPU. Export with --dtype float32 or float16, or with --quantize-format qdq."
        )


def _check_float(options: QuantizeOptions) -> None:
    """Raise ``LucidError`` for options that do not apply to floating-point schemes."""
    given = {
        "--quantize-format matmulnbits": options.format == "matmulnbits",
        "--block-size": options.block_size is not None,
        "--quantize-embeddings": options.embeddings,
        "--activations int8": options.activations == "int8",
        "--method": options.method not in ("", NEAREST),
        "--equalize": bool(options.equalize),
        "--head-bits": options.head_bits is not None,
    }
    names = [name for name, there in given.items() if there]
    if names:
        raise LucidError(
            f"--quantize {options.scheme} rounds weights to floating-point numbers with scales that its format "
            f"prescribes, so leave out {', '.join(names)}; int8 and int4 have these options."
        )


def _check_learning(options: QuantizeOptions) -> None:
    """Raise ``LucidError`` if calibration tokens are given for a method that does not learn."""
    if not options.chosen_method.learns and options.calibration_tokens != CALIBRATION_TOKENS:
        raise LucidError(
            f"--method {options.chosen_method.name} does not learn, so leave out --calibration-tokens, or choose "
            "--method distill."
        )


def _check_stored(options: QuantizeOptions) -> None:
    """Raise ``LucidError`` for options that would change the checkpoint's quantized values."""
    given = {
        "--method": options.method not in ("", NEAREST),
        "--equalize": bool(options.equalize),
        "--head-bits": options.head_bits is not None,
        "--block-size": options.block_size is not None,
        "--keep-float": bool(options.keep_float),
        "--quantize-embeddings": options.embeddings,
        "--calibration-tokens": options.calibration_tokens != CALIBRATION_TOKENS,
    }
    names = [name for name, there in given.items() if there]
    if names:
        raise LucidError(f"--quantize stored keeps the checkpoint's quantized values, so leave out {', '.join(names)}.")

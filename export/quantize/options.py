"""The options of quantization, and the checks that need no checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

from lucid_deploy.artifact.quantization import (
    ACTIVATIONS,
    AWQ,
    BLOCK_SIZES,
    FLOAT_SCHEMES,
    FORMATS,
    NEAREST,
    SCHEMES,
    STORED,
    WHOLE_SCHEMES,
)
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.method import find_method
from lucid_deploy.export.quantize.nearest import nearest_kernel

# By measurement, see docs/quantization.md.
DEFAULT_BLOCK = {"int8": 32, "int4": 32}
CALIBRATION_TOKENS, GPTQ_DAMPING, GPTQ_ORDER = 32768, 0.01, "activation"
_TOKENS = "--calibration-tokens"


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        scheme: ``int8``, ``int4``, ``fp8`` or ``nvfp4``; or ``stored``: the numbers of a checkpoint that is quantized
            already.
        format: ``matmulnbits``, ``qdq``, or ``auto``: ``matmulnbits``, onnxruntime being the default runtime; of
            floating-point numbers ``qdq``.
        block_size: Elements that share a scale; None: the scheme's default.
        keep_float: Globs of weights that are not quantized, such as ``layers.*.k_proj`` or ``lm_head``.
        embeddings: Quantize the embedding too. One that is tied to the head is one weight with it and follows the head.
        activations: ``int8``, ``float``, or ``auto``: ``int8`` of whole numbers, ``float`` of ``fp8`` and ``nvfp4``,
            and of a checkpoint in fp8 what it says; see :class:`~lucid_deploy.artifact.quantization.Quantization`.
        method: How numbers are chosen, one of :func:`~lucid_deploy.export.quantize.method.method_names`.
        calibration_tokens: How many tokens of that text to learn from at most.
        gptq_damping: Share of the mean of the diagonal of H that is added to it.
        gptq_order: ``activation``: inputs of largest second moment first; ``stored``: as they stand.
        target_bits: With ``auto``: bits a quantized weight at most, on average, scales included.
        equalize: Make the columns of weights alike before rounding, which needs no text.
        head_bits: Bits of ``lm_head``, and of an embedding that is tied to it; None: the scheme's.
        bits: Of weights that have others than the scheme's, by the checkpoint's names; to quantize like an artifact.
    """

    scheme: str
    format: str = "auto"
    block_size: int | None = None
    keep_float: tuple[str, ...] = ()
    embeddings: bool = False
    activations: str = "auto"
    method: str = NEAREST
    calibration_tokens: int = CALIBRATION_TOKENS
    gptq_damping: float = GPTQ_DAMPING
    gptq_order: str = GPTQ_ORDER
    target_bits: float | None = None
    equalize: bool = False
    head_bits: int | None = None
    bits: dict[str, int] = field(default_factory=dict)

    @property
    def is_float(self) -> bool:
        """Whether weights become floating-point numbers of fewer bits."""
        return self.scheme in FLOAT_SCHEMES

    @property
    def learns(self) -> bool:
        """Whether numbers are chosen by data."""
        return find_method(self.method).learns


def check_options(options: QuantizeOptions, dtype: str) -> None:
    """Check options as far as possible without the checkpoint."""
    for name, value, known in (
        ("quantize", options.scheme, (*SCHEMES, STORED)),
        ("quantize-format", options.format, ("auto", *FORMATS)),
        ("activations", options.activations, ("auto", *ACTIVATIONS)),
        ("gptq-order", options.gptq_order, ("activation", "stored")),
    ):
        if value not in known:
            raise LucidError(f"--{name} must be one of {', '.join(known)}, not {value!r}.")
    if options.block_size is not None and options.block_size not in BLOCK_SIZES:
        raise LucidError(
            f"--block-size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {options.block_size}: runtimes have "
            "kernels for these."
        )
    if options.scheme != STORED or options.format != "auto":  # which follows from the checkpoint
        check_kernels(format_of(options), dtype)
    if options.embeddings and format_of(options) == "qdq":
        raise LucidError(
            "In the format qdq an embedding would be dequantized whole for every token. Leave out "
            "--quantize-embeddings, or export with --quantize-format matmulnbits."
        )
    if not 0 <= options.gptq_damping <= 1:  # NaN too
        raise LucidError(f"--gptq-damping is a share of a mean, from 0 to 1, not {options.gptq_damping:g}.")
    if options.equalize and options.method == AWQ:
        raise LucidError("--method awq scales inputs itself, so leave out --equalize.")
    if options.calibration_tokens < 1:
        raise LucidError(f"--calibration-tokens must be 1 or more, not {options.calibration_tokens}.")
    if not {*options.bits.values(), options.head_bits or 8} <= set(WHOLE_SCHEMES.values()):
        raise LucidError(f"bits of a weight must be one of {', '.join(map(str, WHOLE_SCHEMES.values()))}.")
    find_method(options.method).check(options)
    if options.scheme == STORED:
        _check_stored(options)
    elif options.is_float:
        _check_float(options)
    else:
        _check_learning(options)
        nearest_kernel(options.scheme)


def check_kernels(form: str, dtype: str) -> None:
    """Check that onnxruntime has kernels for a format in this type."""
    if dtype == "bfloat16" and form != "qdq":
        raise LucidError(
            "Quantized weights in bfloat16 graphs are for TensorRT: onnxruntime's MatMulNBits has no bfloat16 kernel "
            "on the CPU. Export with --dtype float32 or float16, or with --quantize-format qdq."
        )


def _check_float(options: QuantizeOptions) -> None:
    """Refuse options that do not apply to floating-point numbers."""
    given = {
        "--quantize-format matmulnbits": options.format == "matmulnbits",
        "--block-size": options.block_size is not None,
        "--quantize-embeddings": options.embeddings,
        "--activations int8": options.activations == "int8",
        "--method": options.method != NEAREST,
        "--equalize": options.equalize,
        "--head-bits": options.head_bits is not None,
        "bits": bool(options.bits),
    }
    names = [*(name for name, there in given.items() if there), *_learning_given(options)]
    if names:
        raise LucidError(
            f"--quantize {options.scheme} rounds weights to floating-point numbers with scales that its format "
            f"prescribes, so leave out {', '.join(names)}; int8 and int4 have these options."
        )


def _check_learning(options: QuantizeOptions) -> None:
    """Refuse options that the method ignores."""
    method = find_method(options.method)
    given = [name for name, kind in _learning_given(options).items() if kind not in method.options]
    if given:
        why = "has no such setting" if method.learns else "does not learn"
        raise LucidError(f"--method {method.name} {why}, so leave out {', '.join(given)}, or choose another method.")


def _learning_given(options: QuantizeOptions) -> dict[str, str]:
    """Return the learning options that were given, with their names in ``QuantizationMethod.options``."""
    given = {
        (_TOKENS, "tokens"): options.calibration_tokens != CALIBRATION_TOKENS,
        ("--gptq-damping", "damping"): options.gptq_damping != GPTQ_DAMPING,
        ("--gptq-order", "order"): options.gptq_order != GPTQ_ORDER,
        ("--target-bits", "target"): options.target_bits is not None,
    }
    return {name: kind for (name, kind), there in given.items() if there}


def _check_stored(options: QuantizeOptions) -> None:
    """Refuse options that would change the checkpoint's numbers."""
    default = QuantizeOptions(STORED)
    given = {
        "--method": options.method != default.method,
        "--equalize": options.equalize,
        "--head-bits": options.head_bits is not None,
        "--block-size": options.block_size is not None,
        "--keep-float": bool(options.keep_float),
        "--quantize-embeddings": options.embeddings,
        "bits": bool(options.bits),
    }
    names = [*(name for name, there in given.items() if there), *_learning_given(options)]
    if names:
        raise LucidError(f"The checkpoint's numbers are taken over as they are, so leave out {', '.join(names)}.")


def format_of(options: QuantizeOptions) -> str:
    """Resolve the format: ``auto`` is ``qdq`` for floating-point numbers, else ``matmulnbits``."""
    if options.format == "auto":
        return "qdq" if options.is_float else "matmulnbits"
    return options.format


def activations_of(options: QuantizeOptions) -> str:
    """Resolve the activations: ``auto`` is ``float`` for floating-point numbers, else ``int8``."""
    if options.activations == "auto":
        return "float" if options.is_float else "int8"
    return options.activations

"""Plan which weights are quantized; make whole numbers with onnxruntime's quantizer, a slice of a tensor at a time."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.float_formats import NVFP4_BLOCK
from lucid_deploy.artifact.quantization import (
    ACTIVATIONS,
    BLOCK_SIZES,
    FLOAT_SCHEMES,
    FORMATS,
    SCHEMES,
    WHOLE_SCHEMES,
    Quantization,
    QuantizedTensor,
    round_blocks,
)
from lucid_deploy.artifact.quantization_method import AUTO, GPTQ, K_QUANT, METHODS, NEAREST, STORED, Method
from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    import torch

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# By measurement, see docs/low-precision.md.
DEFAULT_BLOCK = {"int8": 32, "int4": 32}
CALIBRATION_TOKENS, GPTQ_DAMPING, GPTQ_ORDER = 32768, 0.01, "activation"
_SLICE = 1 << 22  # elements quantized at once


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
        method: ``rtn``; ``k_quant``, with zero points; ``gptq``, which learns from the calibration text; or ``auto``:
            that with 4 and 8 bits mixed.
        calibration_tokens: How many tokens of that text to learn from at most.
        gptq_damping: Share of the mean of the diagonal of H that is added to it.
        gptq_order: ``activation``: inputs of largest second moment first; ``stored``: as they stand.
        target_bits: With ``auto``: bits a quantized weight at most, on average, scales included.
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
    bits: dict[str, int] = field(default_factory=dict)

    @property
    def is_float(self) -> bool:
        """Whether weights become floating-point numbers of fewer bits."""
        return self.scheme in FLOAT_SCHEMES

    @property
    def learns(self) -> bool:
        """Whether numbers are chosen by data."""
        return self.method not in (NEAREST, K_QUANT)


def check_options(options: QuantizeOptions, dtype: str) -> None:
    """Check what needs no checkpoint.

    Raises:
        LucidError: Options that are unknown or contradict each other, or onnxruntime is not installed.
    """
    for name, value, known in (
        ("quantize", options.scheme, (*SCHEMES, STORED)),
        ("quantize-format", options.format, ("auto", *FORMATS)),
        ("activations", options.activations, ("auto", *ACTIVATIONS)),
        ("method", options.method, METHODS),
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
    if options.method == K_QUANT and format_of(options) == "qdq":
        raise LucidError(
            "--method k_quant gives zero points, which TensorRT does not take. Use --quantize-format matmulnbits, or "
            "--method rtn or gptq."
        )
    if not 0 <= options.gptq_damping <= 1:  # NaN too
        raise LucidError(f"--gptq-damping is a share of a mean, from 0 to 1, not {options.gptq_damping:g}.")
    if options.calibration_tokens < 1:
        raise LucidError(f"--calibration-tokens must be 1 or more, not {options.calibration_tokens}.")
    if not set(options.bits.values()) <= set(WHOLE_SCHEMES.values()):
        raise LucidError(f"bits of a weight must be one of {', '.join(map(str, WHOLE_SCHEMES.values()))}.")
    _check_target(options)
    if options.scheme == STORED:
        _check_stored(options)
    elif options.is_float:
        _check_float(options)
    else:
        _check_learning(options)
        _kernel(options.scheme)


def check_kernels(form: str, dtype: str) -> None:
    """Check that onnxruntime multiplies in a type what a format holds.

    Raises:
        LucidError: It does not.
    """
    if dtype == "bfloat16" and form != "qdq":
        raise LucidError(
            "Quantized weights in bfloat16 graphs are for TensorRT: onnxruntime's MatMulNBits has no bfloat16 kernel "
            "on the CPU. Export with --dtype float32 or float16, or with --quantize-format qdq."
        )


def _check_float(options: QuantizeOptions) -> None:
    """Refuse what means nothing for floating-point numbers."""
    given = {
        "--quantize-format matmulnbits": options.format == "matmulnbits",
        "--block-size": options.block_size is not None,
        "--quantize-embeddings": options.embeddings,
        "--activations int8": options.activations == "int8",
        "--method": options.method != NEAREST,
        "bits": bool(options.bits),
    }
    names = [*(name for name, there in given.items() if there), *_learning_given(options)]
    if names:
        raise LucidError(
            f"--quantize {options.scheme} rounds weights to floating-point numbers with scales that its format "
            f"prescribes, so leave out {', '.join(names)}; int8 and int4 have these options."
        )


def _check_target(options: QuantizeOptions) -> None:
    automatic = options.method == AUTO
    if automatic and options.scheme != "int4":
        raise LucidError("--method auto gives int4 weights 8 bits where it pays: use it with --quantize int4.")
    if automatic and options.target_bits is None:
        raise LucidError("--method auto needs a size: add --target-bits, such as 6.")
    if options.target_bits is not None and not automatic:
        raise LucidError("--target-bits is for --method auto; leave it out.")
    if options.target_bits is not None and not 0 < options.target_bits <= 32:  # NaN too
        raise LucidError(f"--target-bits must be above 0 and 32 at most, not {options.target_bits:g}.")


def _check_learning(options: QuantizeOptions) -> None:
    """Refuse options of methods that learn beside one that does not."""
    given = [] if options.learns else _learning_given(options)
    if given:
        raise LucidError(
            f"{', '.join(given)} is for --method {GPTQ} and {AUTO}; --method {options.method} does not learn. Leave it "
            "out, or choose one of them."
        )


def _learning_given(options: QuantizeOptions) -> list[str]:
    """Name the options given that only matter where numbers are learned."""
    given = {
        "--calibration-tokens": options.calibration_tokens != CALIBRATION_TOKENS,
        "--gptq-damping": options.gptq_damping != GPTQ_DAMPING,
        "--gptq-order": options.gptq_order != GPTQ_ORDER,
    }
    return [name for name, there in given.items() if there]


def _check_stored(options: QuantizeOptions) -> None:
    """Refuse options that would change numbers which are taken over."""
    default = QuantizeOptions(STORED)
    given = {
        "--method": options.method != default.method,
        "--block-size": options.block_size is not None,
        "--keep-float": bool(options.keep_float),
        "--quantize-embeddings": options.embeddings,
        "bits": bool(options.bits),
    }
    names = [*(name for name, there in given.items() if there), *_learning_given(options)]
    if names:
        raise LucidError(f"The checkpoint's numbers are taken over as they are, so leave out {', '.join(names)}.")


def plan_quantization(shapes: dict[str, tuple[int, ...]], tied: bool, options: QuantizeOptions) -> Quantization:
    """Choose what is quantized.

    Args:
        shapes: The tensors that are stored, by the checkpoint's names; a tied head is not among them.
        tied: Whether the embedding is the head too.
        options: How to quantize.

    Raises:
        LucidError: A glob that matches nothing, nothing left to quantize, bits of a weight that is not, or rows that no
            block divides where the format needs it.
    """
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    form = format_of(options)
    candidates = [name for name in matrices if name != EMBEDDING]
    if form == "matmulnbits" and (tied or options.embeddings):
        candidates.insert(0, EMBEDDING)
    chosen = [name for name in candidates if name not in _kept(candidates, tied, options.keep_float)]
    if not chosen:
        raise LucidError("--keep-float keeps every weight, so there is nothing to quantize. Leave out --quantize.")
    if strangers := sorted(options.bits.keys() - set(chosen)):
        raise LucidError(f"Bits are given for weights that are not quantized: {', '.join(strangers)}.")
    tensors = {name: _planned(name, shapes[name], options) for name in chosen}
    return Quantization(
        scheme=options.scheme,
        bits=SCHEMES[options.scheme],
        format=form,
        activations=activations_of(options),
        tensors=tensors,
        kept=tuple(name for name in matrices if name not in tensors),
        tool=f"lucid-deploy {__version__}" if options.learns or options.is_float else _onnxruntime(),
        method=Method(K_QUANT if options.method == K_QUANT else NEAREST),
    )


def _planned(name: str, shape: tuple[int, ...], options: QuantizeOptions) -> QuantizedTensor:
    rows, width = shape
    if options.scheme == "fp8":
        return QuantizedTensor((rows, width), width, granularity="tensor")
    if options.scheme == "nvfp4":
        if width % NVFP4_BLOCK:
            raise LucidError(
                f"{short_name(name)} has rows of {width} elements, which blocks of {NVFP4_BLOCK} do not divide, as "
                f"nvfp4 asks for. Keep it with --keep-float {short_name(name)!r}, or use --quantize fp8."
            )
        return QuantizedTensor((rows, width), NVFP4_BLOCK)
    block = options.block_size or DEFAULT_BLOCK[options.scheme]
    size = _dividing(name, width, block) if format_of(options) == "qdq" else block
    zeros = options.method == K_QUANT and name != EMBEDDING  # whose rows an operator without zero points reads
    return QuantizedTensor((rows, width), size, zeros, bits=options.bits.get(name))


def format_of(options: QuantizeOptions) -> str:
    """Return the format that is meant: ``auto`` is ``matmulnbits``, and ``qdq`` of floating-point numbers."""
    if options.format == "auto":
        return "qdq" if options.is_float else "matmulnbits"
    return options.format


def activations_of(options: QuantizeOptions) -> str:
    """Return what the inputs of products are rounded to: ``auto`` is ``int8``, and ``float`` beside floats."""
    if options.activations == "auto":
        return "float" if options.is_float else "int8"
    return options.activations


def short_name(name: str) -> str:
    """Return a weight's name as globs see it: ``layers.0.self_attn.k_proj``, ``lm_head``, ``embed_tokens``."""
    return name.removeprefix("model.").removesuffix(".weight")


def _kept(candidates: list[str], tied: bool, globs: tuple[str, ...]) -> set[str]:
    kept = set()
    for glob in globs:
        found = {
            name
            for name in candidates
            if any(fnmatch.fnmatchcase(known, glob) for known in _names(name, tied and name == EMBEDDING))
        }
        if not found:
            known = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", short_name(name)) for name in candidates)
            raise LucidError(f"--keep-float {glob!r} matches no weight that would be quantized: {', '.join(known)}.")
        kept |= found
    return kept


def _names(name: str, is_head: bool) -> Iterator[str]:
    for own in (name, HEAD) if is_head else (name,):
        yield from (own, short_name(own), own.removesuffix(".weight"))


def _dividing(name: str, width: int, block: int) -> int:
    """Return the largest block that divides a row; TensorRT takes no other."""
    for size in reversed(BLOCK_SIZES):
        if size <= block and width % size == 0:
            return size
    raise LucidError(
        f"{short_name(name)} has rows of {width} elements, which no block of {BLOCK_SIZES[0]} or more divides; "
        f"TensorRT needs that. Keep it with --keep-float {short_name(name)!r}, or export with --quantize-format "
        "matmulnbits."
    )


def quantize_matrix(
    weight: torch.Tensor, tensor: QuantizedTensor, bits: int, least_scale: float | None = None
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Quantize a matrix ``(out, in)``, some rows at a time.

    Args:
        weight: Any floating type.
        tensor: Its shape and blocks.
        bits: 4 or 8.
        least_scale: Make every scale positive and at least this, for 8 bits; None: onnxruntime's scheme.

    Yields:
        Packed bytes ``(rows, blocks, block_size · bits / 8)``, two 4-bit numbers in a byte, lower half first, each with
        ``2^(bits-1)`` added, and scales, float32 ``(rows, blocks)``.
    """
    kernel = _kernel(f"int{bits}")
    (count, width), blocks, size = tensor.shape, tensor.blocks, tensor.block_size
    step = max(_SLICE // width, 1)
    for start in range(0, count, step):
        rows = weight[start : start + step].float().numpy()
        if least_scale is not None:
            yield round_blocks(rows, tensor, least_scale)
            continue
        columns = np.zeros((blocks * size, len(rows)), dtype=np.float32)
        columns[:width] = rows.T
        packed = np.zeros((len(rows), blocks, size * bits // 8), dtype=np.uint8)
        scales = np.zeros((len(rows), blocks), dtype=np.float32)
        unused = np.zeros((len(rows), -(-blocks * bits // 8)), dtype=np.uint8)  # zero points; the scheme is symmetric
        kernel(packed, columns, scales, unused, size, len(rows), width, True)
        yield packed, scales


def _kernel(scheme: str) -> Any:
    try:
        from onnxruntime.capi import _pybind_state as kernels
    except ImportError as error:
        raise missing_extra("onnxruntime", "cpu", "quantize weights") from error
    # What onnxruntime.quantization.matmul_nbits_quantizer calls; that module itself wants whole models in memory.
    return kernels.quantize_matmul_8bits if scheme == "int8" else kernels.quantize_matmul_4bits


def _onnxruntime() -> str:
    distribution = importlib.metadata.packages_distributions()["onnxruntime"][0]
    return f"onnxruntime {importlib.metadata.version(distribution)}"

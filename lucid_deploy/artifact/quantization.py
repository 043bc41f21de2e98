"""The manifest's record of a quantized artifact: its quantized weights, their parts, and how their values were chosen.

What the bytes of the parts mean is in :mod:`lucid_deploy.artifact.quantized_bytes`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHOLE_SCHEMES = {"int8": 8, "int4": 4}  # schemes with whole numbers, and their bits
FLOAT_SCHEMES = {"fp8": 8, "nvfp4": 4}  # schemes with floating-point numbers, and their bits
SCHEMES = {**WHOLE_SCHEMES, **FLOAT_SCHEMES}
FORMATS = ("matmulnbits", "qdq")
ACTIVATIONS = ("int8", "float")
# How a checkpoint in fp8 may round the inputs of matrix multiplications: see Quantization.activations.
STATIC_FP8, TOKEN_FP8, GROUP_FP8 = "fp8-static", "fp8-token", "fp8-group"
FP8_ACTIVATIONS = (STATIC_FP8, TOKEN_FP8, GROUP_FP8)
BLOCK_SIZES = (16, 32, 64, 128, 256)
NVFP4_BLOCK = 16
GRANULARITIES = ("block", "channel", "tensor")
# Suffixes that are added to a weight's name to name its quantized parts, in graphs and in the weight file.
PACKED, SCALES, ROWS = ".packed", ".scales", ".packed_rows"
ZEROS, OFFSETS = ".zero_points", ".offsets"
WHOLE_SCALE, INPUT_SCALE = ".whole_scale", ".input_scale"
PARTS = (PACKED, SCALES, ROWS, ZEROS, OFFSETS, WHOLE_SCALE, INPUT_SCALE)
TYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8e4m3fn": 8, "uint8": 8, "int8": 8}
TYPE_BITS |= {"int4": 4, "float4e2m1": 4}
# Where scales must be positive, a block of zeros has this scale, the smallest of the scales' type.
LEAST_SCALE = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
NEAREST, HQQ, DISTILL = "rtn", "hqq", "distill"  # methods that other modules refer to
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # one weight if the head is tied
STORED = "stored"  # values are taken over from a checkpoint that is already quantized


@dataclass(frozen=True)
class QuantizedTensor:
    """How one weight is quantized: its blocks, its bits, and what is stored beside the quantized values."""

    shape: tuple[int, int]  # (out, in), or for an embedding (vocab, hidden); the last axis is cut into blocks
    block_size: int  # elements of a block; a row's last block may have fewer. Without blocks it is the row's width
    zero_points: bool = False  # whether a weight is (q − z) · s, with a z for each block; only in matmulnbits
    bits: int | None = None  # of an element; None: the record's
    granularity: str = "block"  # what shares a scale: a block or, in fp8, a channel (row) or the whole tensor
    offsets: bool = False  # whether a weight is q · s + c, with a c for each block, in the scales' type
    scale_dtype: str | None = None  # of scales and offsets; None: the model's type, or the scheme's
    experts: int = 0  # number of experts whose matrices are stacked along the rows; 0: a single matrix
    transposed: bool = False  # whether the checkpoint stores experts as (experts, in, out)

    @property
    def blocks(self) -> int:
        """The number of blocks in a row."""
        return -(-self.shape[1] // self.block_size)

    def matrix(self, weight: Any) -> Any:
        """Return a PyTorch tensor, given in the checkpoint's shape, as one matrix ``(out, in)``."""
        if not self.experts:
            return weight
        return (weight.mT if self.transposed else weight).reshape(self.shape)

    def as_stored(self, matrix: Any) -> Any:
        """Return an array ``(out, in)`` in the shape that the checkpoint has."""
        if not self.experts:
            return matrix
        stacked = matrix.reshape(self.experts, -1, self.shape[1])
        return stacked.swapaxes(1, 2) if self.transposed else stacked


def short_name(name: str) -> str:
    """Return a weight's name as globs see it: ``layers.0.self_attn.k_proj``, ``lm_head``, ``embed_tokens``."""
    return name.removeprefix("model.").removesuffix(".weight")


def rows_name(name: str, start: int, stop: int) -> str:
    """Return the name of some rows of a weight, which are quantized as a weight of their own: ``NAME[0:16384]``."""
    return f"{name}[{start}:{stop}]"


def weight_and_rows(name: str) -> tuple[str, slice]:
    """Return the checkpoint's weight that a name stands for, and which rows: all, or those given to ``rows_name``."""
    weight, _, rows = name.partition("[")
    return weight, slice(*map(int, rows[:-1].split(":"))) if rows else slice(None)


def relative_distance(rounded: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Return ‖Ŵ − W‖ / ‖W‖ in Frobenius norms; 0 if both matrices are zero, and infinite if only W is."""
    lost, whole = float(np.linalg.norm(rounded - weight)), float(np.linalg.norm(weight))
    if whole == 0:
        return 0.0 if lost == 0 else float("inf")
    return lost / whole


@dataclass(frozen=True)
class LearnedTensor:
    """How far a weight's quantized values, learned from calibration text, are from the weight."""

    distance: float  # relative_distance from the checkpoint's weight, with folded scales; verify computes it again


@dataclass(frozen=True)
class Method:
    """The manifest's record of how the quantized values were chosen."""

    name: str = NEAREST  # of --method, or STORED
    settings: dict[str, Any] = field(default_factory=dict)  # such as rate; of STORED: layout, that of the checkpoint
    calibration: dict[str, Any] = field(default_factory=dict)  # CalibrationRows.facts, such as file and seed
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)  # of learned weights; others need no calibration


@dataclass(frozen=True)
class Quantization:
    """The manifest's record of a quantized artifact."""

    scheme: str  # int8, int4, fp8 or nvfp4
    bits: int  # of an element, unless its tensor says otherwise
    # matmulnbits: onnxruntime's operators com.microsoft::MatMulNBits and GatherBlockQuantized, and ours for experts.
    # qdq: DequantizeLinear before a matrix multiplication, which TensorRT supports too.
    format: str
    # How inputs of matrix multiplications are rounded. float: not at all. int8: onnxruntime on the CPU rounds blocks of
    # them to 8 bits. Otherwise the graphs round to E4M3; the scale is stored for each weight (fp8-static), or it is the
    # largest magnitude / 448 of each token (fp8-token) or of each input_block elements of a token (fp8-group).
    activations: str
    tensors: dict[str, QuantizedTensor]  # quantized weights by the checkpoint's names, or by those of rows_name
    kept: tuple[str, ...]  # the checkpoint's matrices that are not quantized
    tool: str  # the program that chose the values, with its version; of STORED: the layout
    method: Method = field(default_factory=Method)  # how they were chosen
    input_block: int | None = None  # with fp8-group, how many inputs share a scale; None otherwise

    def __post_init__(self) -> None:
        if SCHEMES.get(self.scheme) != self.bits:
            raise ValueError(f"quantization {self.scheme!r} with {self.bits!r} bits")
        known = ("float", *FP8_ACTIVATIONS) if self.scheme == "fp8" else ("float",) if self.is_float else ACTIVATIONS
        if self.format not in (FORMATS[1:] if self.is_float else FORMATS) or self.activations not in known:
            raise ValueError(f"quantization's format is {self.format!r}, its activations are {self.activations!r}")
        if (self.activations == GROUP_FP8) != ((self.input_block or 0) > 0):
            raise ValueError(f"quantization's input_block is {self.input_block!r} with {self.activations!r}")
        if not self.tensors or not self.method.tensors.keys() <= self.tensors.keys():
            raise ValueError("quantization has no tensors, or its method names a tensor that is not quantized")
        for name, tensor in self.tensors.items():
            if not self._is_possible(tensor):
                raise ValueError(f"quantization of {name}: {tensor} in {self.scheme} and the format {self.format}")

    def _is_possible(self, tensor: QuantizedTensor) -> bool:
        is_whole, (rows, width) = not self.is_float, tensor.shape
        sizes = BLOCK_SIZES if self.scheme != "nvfp4" else (NVFP4_BLOCK,)
        return (
            (tensor.granularity == "block" or (tensor.granularity in GRANULARITIES and self.scheme == "fp8"))
            and tensor.block_size in (sizes if tensor.granularity == "block" else (width,))
            and min(rows, width) > 0
            and not (tensor.zero_points and (self.format == "qdq" or tensor.offsets))
            and (is_whole or not tensor.offsets)
            and (tensor.scale_dtype is None or (tensor.scale_dtype == "float16" and self.format == "matmulnbits"))
            and not (
                tensor.experts
                and (
                    self.format == "qdq" or rows % tensor.experts or width % tensor.block_size or tensor.block_size % 32
                )
            )
            and (tensor.bits is None or (is_whole and tensor.bits in WHOLE_SCHEMES.values()))
        )

    @property
    def is_float(self) -> bool:
        """Whether elements are floating-point numbers."""
        return self.scheme in FLOAT_SCHEMES

    @property
    def rounds_inputs(self) -> bool:
        """Whether the graphs round the inputs of quantized matrix multiplications to E4M3."""
        return self.activations in FP8_ACTIVATIONS

    def rounded_inputs(self, to_int8: bool) -> str | None:
        """Return the type to which a runtime rounds inputs of MatMuls, or None; ``to_int8``: whether it can do int8."""
        if self.rounds_inputs:
            return "fp8"
        return "int8" if to_int8 and self.activations == "int8" else None

    @property
    def sharing(self) -> str:
        """What shares a scale, in words, such as ``blocks of 32`` or ``one scale a row``."""
        kinds = {tensor.granularity for tensor in self.tensors.values()}
        names = {"channel": "one scale a row", "tensor": "one scale a weight"}
        sizes = sorted({tensor.block_size for tensor in self.tensors.values() if tensor.granularity == "block"})
        blocks = [f"blocks of {', '.join(map(str, sizes))}"] if sizes else []
        return " and ".join([*blocks, *(names[kind] for kind in GRANULARITIES if kind in kinds & names.keys())])

    @property
    def inputs(self) -> str:
        """What the inputs of matrix multiplications are rounded to, in words, such as ``int8 inputs on the CPU``."""
        if self.activations == GROUP_FP8:
            return f"inputs in fp8 by groups of {self.input_block}"
        return {
            "int8": "int8 inputs on the CPU",
            "float": "float inputs",
            STATIC_FP8: "inputs in fp8 with stored scales",
            TOKEN_FP8: "inputs in fp8 by tokens",
        }[self.activations]

    @property
    def block_size(self) -> int:
        """The largest block size of any tensor; others may have smaller blocks."""
        return max(tensor.block_size for tensor in self.tensors.values())

    def block_sizes(self, tied: bool) -> dict[str, int]:
        """Return every quantized weight's block size by name; a tied head's too, if the embedding is quantized."""
        sizes = {weight_and_rows(name)[0]: tensor.block_size for name, tensor in self.tensors.items()}
        if tied and EMBEDDING in sizes:
            sizes[HEAD] = sizes[EMBEDDING]
        return sizes

    def pieces(self, weight: str) -> list[str]:
        """Return the names under which a weight is quantized: its own or those of its rows; [] if it is not."""
        return [name for name in self.tensors if weight_and_rows(name)[0] == weight]

    def part_shape(self, name: str, part: str) -> tuple[int, ...]:
        """Return the shape of a stored part; ``ROWS`` is another view of ``PACKED``."""
        tensor = self.tensors[name]
        (rows, width), blocks = tensor.shape, tensor.blocks
        if part in (WHOLE_SCALE, INPUT_SCALE):
            return ()
        experts = (tensor.experts, rows // tensor.experts, blocks) if tensor.experts else None
        if part == OFFSETS:
            return experts or (blocks, rows)
        if self.format == "qdq":
            scales: dict[str, tuple[int, ...]] = {"block": (blocks, rows), "channel": (rows,), "tensor": ()}
            return scales[tensor.granularity] if part == SCALES else (width, rows)
        bits = self.bits_of(name)
        blob = tensor.block_size * bits // 8
        if experts:
            return experts if part == SCALES else (*experts, blob)
        zeros = -(-blocks * bits // 8)
        return {
            SCALES: (rows, blocks),
            PACKED: (rows, blocks, blob),
            ROWS: (rows, blocks * blob),
            ZEROS: (rows, zeros),
        }[part]

    def parts(self, name: str) -> tuple[str, ...]:
        """Return which parts of a tensor are stored, in the order of the file."""
        zeros = (ZEROS,) if self.tensors[name].zero_points else ()
        offsets = (OFFSETS,) if self.tensors[name].offsets else ()
        whole = (WHOLE_SCALE,) if self.scheme == "nvfp4" else ()
        inputs = (INPUT_SCALE,) if self.activations == STATIC_FP8 else ()
        return (PACKED, SCALES, *zeros, *offsets, *whole, *inputs)

    def bits_of(self, name: str) -> int:
        """Return the bits of a tensor's elements."""
        return self.tensors[name].bits or self.bits

    def has_positive_scales(self, name: str) -> bool:
        """Whether every scale of a tensor must be positive, as TensorRT's parser requires of int8 weights."""
        return self.scheme in WHOLE_SCHEMES and self.format == "qdq" and self.bits_of(name) == 8

    def packed_dtype(self, name: str) -> str:
        """Return the ONNX type that a tensor's packed numbers have in the graphs."""
        if self.is_float:
            return "float8e4m3fn" if self.scheme == "fp8" else "float4e2m1"
        return "uint8" if self.format == "matmulnbits" else f"int{self.bits_of(name)}"

    def part_dtype(self, name: str, part: str, dtype: str) -> str:
        """Return a stored part's type in graphs of type ``dtype``: ONNX's name in lower case, ``float32`` for FLOAT."""
        if part in (PACKED, ROWS):
            return self.packed_dtype(name)
        if part in (SCALES, OFFSETS) and self.tensors[name].scale_dtype is not None:
            return self.tensors[name].scale_dtype or dtype
        if part == OFFSETS:
            return dtype
        if part == SCALES:
            return {"fp8": "float32", "nvfp4": "float8e4m3fn"}.get(self.scheme, dtype)
        return "uint8" if part == ZEROS else "float32"

    def part_size(self, name: str, part: str, dtype: str) -> int:
        """Return the bytes of a stored part in graphs of type ``dtype``."""
        return -(-math.prod(self.part_shape(name, part)) * TYPE_BITS[self.part_dtype(name, part, dtype)] // 8)

    def bits_per_weight(self, dtype: str) -> float:
        """Return the mean bits per element of quantized weights, all parts included, in graphs of type ``dtype``."""
        whole = sum(math.prod(tensor.shape) for tensor in self.tensors.values())
        return 8 * sum(self.stored_size(name, dtype) for name in self.tensors) / whole

    def words(self, dtype: str) -> str:
        """Describe weights and inputs in words: ``int4 hqq, 4.9 bits a weight; int8 inputs on the CPU``."""
        return f"{self.scheme} {self.method.name}, {self.bits_per_weight(dtype):.4g} bits a weight; {self.inputs}"

    def stored_size(self, name: str, dtype: str) -> int:
        """Return the bytes of all parts of a tensor in graphs of type ``dtype``."""
        return sum(self.part_size(name, part, dtype) for part in self.parts(name))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

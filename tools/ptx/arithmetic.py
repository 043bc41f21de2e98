"""PTX's arithmetic on arrays that have one number for each thread.

Source: NVIDIA's PTX ISA 8.8. Registers are unsigned integers (predicates: bool); an instruction's name says what they
hold. Approximations (``ex2.approx`` and the like) are computed in float64 and rounded. Float32 arithmetic returns the
NaN of GPUs, whatever NaN went in; its bits differ from a CPU's NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np

Array = np.ndarray
Function = Callable[..., Array]

KINDS = {
    **{f"{letter}{bits}": f"{name}{bits}" for letter, name in (("u", "uint"), ("b", "uint"), ("s", "int"))
       for bits in (8, 16, 32, 64)},
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
}  # fmt: skip
_COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": lambda a, b: ~np.equal(a, b) & ~(np.not_equal(a, a) | np.not_equal(b, b)),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "neu": np.not_equal,
    "num": lambda a, b: np.equal(a, a) & np.equal(b, b),
    "nan": lambda a, b: np.not_equal(a, a) | np.not_equal(b, b),
}
_LOGIC: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_OTHERWISE = {"rz", "rm", "rp", "sat", "satfinite", "relu"}  # rounding modes and clamps that are not implemented
_TINY = np.float32(2.0**-126)
_NAN = np.array(0x7FFFFFFF, np.uint32).view(np.float32)


def as_kind(registers: Array, kind: str) -> Array:
    """Return the bits of registers read as numbers of a kind; of wider registers, the low bits."""
    if kind == "bf16":
        return (registers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    dtype = np.dtype(KINDS[kind])
    if registers.itemsize != dtype.itemsize:
        registers = registers.astype(f"uint{8 * dtype.itemsize}")
    return registers.view(dtype)


def one_nan(numbers: Array) -> Array:
    """Return float32 numbers with every NaN replaced by the one that GPUs compute; other types as they are."""
    if numbers.dtype != np.float32 or not (wrong := np.isnan(numbers)).any():
        return numbers
    return np.where(wrong, _NAN, numbers)


def as_bits(numbers: Array) -> Array:
    """Return the registers that hold numbers: their bits as unsigned integers; bool stays bool."""
    return numbers if numbers.dtype == bool else numbers.view(f"uint{8 * numbers.dtype.itemsize}")


def flush(numbers: Array) -> Array:
    """Return float32 numbers with subnormal ones replaced by 0 of the same sign (``ftz``)."""
    return np.where(np.abs(numbers) < _TINY, np.copysign(np.float32(0), numbers), numbers)


def to_bfloat16(numbers: Array) -> Array:
    """Round float32 to the nearest bfloat16; return its bits."""
    return numbers.astype(ml_dtypes.bfloat16).view(np.uint16)


def to_half(numbers: Array) -> Array:
    """Round float32 to the nearest float16; return its bits."""
    return numbers.astype(np.float16).view(np.uint16)


def nearest_tf32(numbers: Array) -> Array:
    """Round float32 to the nearest tf32, ties away from 0 (``cvt.rna``)."""
    bits = numbers.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(numbers), rounded, bits).view(np.float32)


def fused(a: Array, b: Array, c: Array) -> Array:
    """Return a·b + c in float32, rounded once (nearly always): a product of two float32 is exact in float64."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def _fused_half(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(np.float16)


def _shift_left(a: Array, b: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    return np.where(b < bits, a << np.minimum(b, bits - 1).astype(a.dtype), np.zeros_like(a))


def _shift_right(a: Array, b: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    gone = np.zeros_like(a) if a.dtype.kind == "u" else a >> np.asarray(bits - 1, a.dtype)
    return np.where(b < bits, a >> np.minimum(b, bits - 1).astype(a.dtype), gone)


def _field(a: Array, position: Array, length: Array) -> Array:
    """``bfe``: ``length`` bits from ``position`` on, sign-extended if the type is signed."""
    bits = 8 * a.dtype.itemsize
    position, length = position.astype(np.int64) & 0xFF, length.astype(np.int64) & 0xFF
    if (position + length > bits).any() or (length == 0).any():
        raise NotImplementedError("bfe of no bits, or of bits beyond the register")
    up = (bits - position - length).astype(a.dtype)
    return (a << up) >> (up + position.astype(a.dtype))


def _permuted(a: Array, b: Array, selector: Array) -> Array:
    """``prmt``: choose four of eight bytes by the selector's digits; 8 in a digit repeats the byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros_like(a)
    for i in range(4):
        digit = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> (np.uint64(8) * (digit & np.uint32(7)).astype(np.uint64))).astype(np.uint32) & np.uint32(255)
        byte = np.where(digit & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        result |= byte << np.uint32(8 * i)
    return result


def _divided(a: Array, b: Array) -> Array:
    """Divide integers, rounding toward 0."""
    if (b == 0).any():
        raise NotImplementedError("division by 0")
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return (np.sign(a.astype(np.int64)) * np.sign(b.astype(np.int64)) * quotient).astype(a.dtype)


def _of_kind(kind: str, function: Function, result: str | None = None) -> Function:
    """Return a function of registers that computes with numbers of one kind."""

    def compute(*registers: Array) -> Array:
        found = function(*(as_kind(each, kind) for each in registers))
        return as_bits(found if found.dtype == bool else one_nan(np.asarray(found, KINDS[result or kind])))

    return compute


def _wide(kind: str, function: Function) -> Function:
    """Return a function whose factors are of one kind and whose result, and last summand, are twice as wide."""
    wide = f"{kind[0]}{2 * int(kind[1:])}"

    def compute(a: Array, b: Array, *rest: Array) -> Array:
        a, b = (as_kind(each, kind).astype(KINDS[wide]) for each in (a, b))
        return as_bits(function(a, b, *(as_kind(each, wide) for each in rest)))

    return compute


def _of_two(function: Function, half: type) -> Function:
    """Return a function of registers that hold two numbers each; ``half``: an unsigned type as wide as one."""

    def compute(*registers: Array) -> Array:
        halves = [np.ascontiguousarray(each).view(half).reshape(-1, 2) for each in registers]
        found = [function(*(np.ascontiguousarray(each[:, i]) for each in halves)) for i in range(2)]
        return np.stack(found, axis=1).view(registers[0].dtype)[:, 0]

    return compute


def _of_bfloat16(function: Function) -> Function:
    """Return a function of bfloat16 registers that computes in float64 and rounds the result once."""

    def compute(*registers: Array) -> Array:
        found = function(*(as_kind(each, "bf16").astype(np.float64) for each in registers))
        return np.where(np.isnan(found), np.uint16(0x7FFF), as_bits(found.astype(ml_dtypes.bfloat16)))

    return compute


def _mixed(name: str, kind: str) -> Function:
    """Return a function with a float32 result; the factors of an fma, or the first summand, are of a half type."""

    def wide(registers: Array) -> Array:
        return as_kind(registers, kind).astype(np.float32)

    if name == "fma":
        return lambda a, b, c: as_bits(one_nan(fused(wide(a), wide(b), as_kind(c, "f32"))))
    sign = 1 if name == "add" else -1
    return lambda a, b: as_bits(one_nan(wide(a) + sign * as_kind(b, "f32")))


def _shift(kind: str, function: Function) -> Function:
    return lambda a, b: as_bits(function(as_kind(a, kind), as_kind(b, "u32")))


def _special(function: Callable[[Array], Array], parts: list[str]) -> Function:
    """Return a function of float32 such as ``ex2``; with ``ftz``, subnormal inputs and results become 0."""

    def compute(a: Array) -> Array:
        number = as_kind(a, "f32")
        number = flush(number) if "ftz" in parts else number
        found = function(number.astype(np.float64)).astype(np.float32)
        return as_bits(one_nan(flush(found) if "ftz" in parts else found))

    return compute


def _conversion(to: str, start: str, parts: list[str]) -> Function:
    """Return ``cvt``'s function from the kind ``start`` to the kind ``to``."""
    if to == "bf16x2" and start == "f32":
        return lambda a, b: to_bfloat16(as_kind(b, "f32")) | (to_bfloat16(as_kind(a, "f32")).astype(np.uint32) << 16)
    if to == "f16x2" and start == "f32":
        return lambda a, b: to_half(as_kind(b, "f32")) | (to_half(as_kind(a, "f32")).astype(np.uint32) << 16)
    if to in ("f16x2", "bf16x2") and start == "e4m3x2":
        half = np.float16 if to == "f16x2" else ml_dtypes.bfloat16

        def from_e4m3(a: Array) -> Array:
            codes = a.astype(np.uint16).view(np.uint8).reshape(-1, 2).view(ml_dtypes.float8_e4m3fn)
            return np.ascontiguousarray(codes.astype(np.float32).astype(half)).view(np.uint32)[:, 0]

        return from_e4m3
    if to == "tf32" and start == "f32" and "rna" in parts:
        return lambda a: as_bits(nearest_tf32(as_kind(a, "f32")))
    if to == "bf16" and start in ("f32", "f16"):
        return lambda a: to_bfloat16(as_kind(a, start).astype(np.float32))
    if start == "bf16" and to == "f32":
        return lambda a: as_bits(as_kind(a, "bf16"))
    if to in KINDS and start in KINDS and (to[0] in "fsub" and (start[0] != "f" or to[0] == "f")):
        return lambda a: as_bits(as_kind(a, start).astype(KINDS[to]))
    raise NotImplementedError(f"cvt {to} from {start}")


def function_of(opcode: str) -> Function:
    """Return the function that an arithmetic instruction computes from its source registers.

    Raises:
        NotImplementedError: The instruction is not implemented here.
    """
    name, *parts = opcode.split(".")
    if _OTHERWISE & set(parts) or ("ftz" in parts and name not in _SPECIAL):
        raise NotImplementedError(opcode)
    kind = parts[-1]
    real = kind in ("f32", "f16")
    if name == "setp" and len(parts) == 2:
        return _of_kind(kind, _COMPARE[parts[0]] if real or parts[0] != "ne" else np.not_equal)
    if name in _LOGIC:
        return _LOGIC[name]
    if name == "not":
        return np.invert
    if name in ("shl", "shr"):
        return _shift(kind if name == "shr" else f"u{kind[1:]}", _shift_left if name == "shl" else _shift_right)
    if name in ("mul", "mad") and "wide" in parts:
        return _wide(kind, np.multiply if name == "mul" else lambda a, b, c: a * b + c)
    if name == "mad" and "lo" in parts:
        return _of_kind(kind, lambda a, b, c: a * b + c)
    if name == "cvt":
        return _conversion(parts[-2], kind, parts)
    if name in _SPECIAL and kind == "f32":
        return _special(_SPECIAL[name], parts)
    if name == "selp":
        return lambda a, b, chosen: np.where(chosen, a, b)
    if name == "prmt":
        return _permuted
    if name == "bfe":
        return lambda a, *place: as_bits(_field(as_kind(a, kind), *place))
    if kind in ("f32x2", "f16x2", "bf16x2"):
        return _of_two(function_of(opcode.removesuffix("x2")), np.uint32 if kind == "f32x2" else np.uint16)
    if name in ("fma", "add", "sub") and parts[-2:-1] == ["f32"] and kind in ("f16", "bf16"):
        return _mixed(name, kind)
    if kind == "bf16" and name in _OF_BFLOAT16 and set(parts[:-1]) <= {"rn"}:
        return _of_bfloat16(_OF_BFLOAT16[name])
    if name == "fma" and real:
        return _of_kind(kind, fused if kind == "f32" else _fused_half)
    if name == "div":
        return _of_kind(kind, np.divide if real else _divided)
    simple = _SIMPLE.get(name)
    if simple is None or set(parts[:-1]) - {"lo", "rn"}:
        raise NotImplementedError(opcode)
    return _of_kind(kind, simple)


_SIMPLE: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "abs": lambda a: np.abs(a),
    "min": lambda *numbers: functools.reduce(np.fmin, numbers),  # of a NaN and a number: the number
    "max": lambda *numbers: functools.reduce(np.fmax, numbers),
}
_OF_BFLOAT16 = {**{name: _SIMPLE[name] for name in ("mul", "neg", "max")}, "fma": lambda a, b, c: a * b + c}
_SPECIAL: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "sqrt": np.sqrt,
    "rcp": lambda a: 1 / a,
    "lg2": np.log2,
}

"""Make Triton's interpreter round as a GPU does, and patch its language once for each launch.

As of Triton 3.9 it multiplies bfloat16 matrices as if their bits were integers, truncates when it converts to bfloat16,
ignores ``input_precision``, refuses ``bf16x3`` and reads E4M3's NaN as 480. Its products are BLAS's, whose sums take
another order in some rows and columns than in others: equal keys then get unequal scores, which a tensor core never
gives them. This module replaces all that, in the interpreter's process.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

STEP = 8  # columns of tf32 that one instruction of a tensor core sums


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even; its bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_e4m3(codes: np.ndarray) -> np.ndarray:
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """Cut float32 off behind 10 bits after the point: tensor cores ignore the rest of a factor."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply float32 matrices, some columns at a time: sums of these in higher precision, the rest in float32."""
    total = np.zeros((*left.shape[:-1], right.shape[-1]), np.float32)
    for k in range(0, left.shape[-1], STEP):
        part = left[..., k : k + STEP].astype(np.float64) @ right[..., k : k + STEP, :].astype(np.float64)
        total += part.astype(np.float32)
    return total


def multiply(left: np.ndarray, right: np.ndarray, precision: Any) -> np.ndarray:
    """Multiply float32 matrices as tensor cores do: one tf32 product, three bfloat16 products, or (nearly) exactly."""
    if precision == ir.INPUT_PRECISION.TF32:
        return product(to_tf32(left), to_tf32(right))
    if precision == ir.INPUT_PRECISION.BF16x3:
        high_left, high_right = (from_bfloat16(to_bfloat16(x)) for x in (left, right))
        low_left, low_right = (
            from_bfloat16(to_bfloat16(x - high)) for x, high in ((left, high_left), (right, high_right))
        )
        return product(low_left, high_right) + product(high_left, low_right) + product(high_left, high_right)
    return product(left, right)


_OF_BFLOAT16: dict[str, Callable[..., Any]] = {
    "create_fmul": np.multiply,
    "create_fneg": np.negative,
    "create_fma": lambda a, b, c: a * b + c,
    "create_maxnumf": np.fmax,
}


def round_like_a_gpu() -> None:
    """Patch the interpreter of this process."""
    builder = interpreter.InterpreterBuilder
    plain_cast = builder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.float8e4nv:
            src = interpreter.TensorHandle(from_e4m3(src.data), tl.float32)
            source = tl.float32
        if target == tl.bfloat16 and source != tl.bfloat16:
            return interpreter.TensorHandle(to_bfloat16(src.data.astype(np.float32)), target)
        if source == tl.bfloat16 and target != tl.bfloat16:
            return interpreter.TensorHandle(from_bfloat16(src.data).astype(interpreter._get_np_dtype(target)), target)
        return plain_cast(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if a.dtype.scalar == tl.int8:  # whole numbers, which float64 holds
            result = (a.data.astype(np.float64) @ b.data.astype(np.float64)).astype(np.int32)
            return interpreter.TensorHandle(result + d.data, d.dtype.scalar)
        left, right = (
            from_bfloat16(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data.astype(np.float32)
            for handle in (a, b)
        )
        is_float32 = a.dtype.scalar == tl.float32
        result = multiply(left, right, input_precision) if is_float32 else product(left, right)
        return interpreter.TensorHandle(result + d.data, d.dtype.scalar)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        return cast_impl(self, src, dst_type)

    def of_bfloat16(name: str, function: Callable[..., Any]) -> None:
        """Let an operation round bfloat16 once: float64 holds what it makes of it."""
        plain = getattr(builder, name)

        def create(self: Any, *operands: Any) -> Any:
            if operands[0].dtype.scalar != tl.bfloat16:
                return plain(self, *operands)
            numbers = [from_bfloat16(operand.data).astype(np.float64) for operand in operands]
            return interpreter.TensorHandle(to_bfloat16(function(*numbers).astype(np.float32)), tl.bfloat16)

        setattr(builder, name, create)

    for name, function in _OF_BFLOAT16.items():
        of_bfloat16(name, function)

    instance = interpreter.interpreter_builder
    precisions = (*instance.options.allowed_dot_input_precisions, "bf16x3")
    instance.options = dataclasses.replace(instance.options, allowed_dot_input_precisions=precisions)
    builder.cast_impl = cast_impl
    builder.create_dot = create_dot
    builder.create_fp_to_fp = create_fp_to_fp


def patch_once_a_launch() -> None:
    """Leave the language as it is where a kernel calls functions: the launch, or the first of them, has patched it.

    Triton looks through the whole language at each such call, which is more than a third of the interpreter's time.
    """
    patch = interpreter._patch_lang
    patched: set[int] = set()

    @functools.cache
    def languages(function: Callable[..., Any]) -> frozenset[int]:
        seen = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        return frozenset(id(value) for value in seen if value in (tl, tl.core))

    def patch_for_launch(kernel: Callable[..., Any]) -> Any:
        patched.clear()
        patched.update(languages(kernel))
        return patch(kernel)

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if not languages(self.fn) <= patched:
            patched.update(languages(self.fn))
            patch(self.fn)
        try:
            return self.rewrite()(*arguments, **named)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter._patch_lang = patch_for_launch
    interpreter.InterpretedFunction.__call__ = call

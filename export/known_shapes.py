"""Shapes and types of the values that captures have most of, without PyTorch's own ways to them.

With symbolic sizes PyTorch decomposes a linear layer or a norm into operators whose values it describes one by one, and
looks for the strides of a product of values that are not contiguous. Here they are read from the operands. What is not
plain (operands of several types, sizes of which it is not known whether they are equal) is left to PyTorch, and so are
the errors. Values between operators get contiguous strides: a graph of ONNX has none.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from lucid_deploy.export.torch_internals import internal

if TYPE_CHECKING:
    import torch

_Size = Any  # int or torch.SymInt


def joined(first: Sequence[_Size], second: Sequence[_Size]) -> list[_Size] | None:
    """Return the shape of two operands that broadcast; None where that takes more than a look at their sizes."""
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    shape = list(longer)
    start = len(longer) - len(shorter)
    for place, size in enumerate(shorter, start):
        if _is_one(longer[place]):
            shape[place] = size
        elif not (_is_one(size) or same(longer[place], size)):
            return None
    return shape


def _is_one(size: _Size) -> bool:
    return isinstance(size, int) and size == 1


def same(first: _Size, second: _Size) -> bool:
    """Say whether two sizes are equal as they are written, without asking what is known of their symbols."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first == second
    return bool(first.node.expr == second.node.expr)


@contextmanager
def known_shapes() -> Iterator[None]:
    """Take them in this thread until the end of the block. Where PyTorch has other internals, it goes its own way."""
    import torch

    aten, thread = torch.ops.aten, threading.get_ident()
    with (
        _values(thread),
        _instead_of_decomposing(aten.linear.default, _linear, thread),
        _instead_of_decomposing(aten.rms_norm.default, _rms_norm, thread),
        _no_memory_format(thread),
    ):
        yield


@contextmanager
def _values(thread: int) -> Iterator[None]:
    """Where PyTorch has quick ways to describe a value of symbolic sizes, take quicker ones."""
    import torch

    module, name = "torch._subclasses.fake_tensor", "get_fast_op_impls"
    own, decompositions = internal(module, name), internal("torch._decomp", "decomposition_table")
    pointwise = (torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor)
    cat = torch.ops.aten.cat.default
    if own is None or cat not in (decompositions or {}) or not all(operator in own() for operator in pointwise):
        yield
        return
    ours = {**own(), cat: _cat(decompositions[cat]), **{each: _pointwise(own()[each]) for each in pointwise}}

    def get_fast_op_impls() -> Any:
        return ours if threading.get_ident() == thread else own()

    with mock.patch.object(internal(module), name, get_fast_op_impls):
        yield


@contextmanager
def _no_memory_format(thread: int) -> Iterator[None]:
    """Do not find out in which order each value's elements lie: no graph of ONNX says so."""
    module, name = "torch.fx.experimental.proxy_tensor", "_extract_tensor_metadata"
    extract = internal(module, name)
    if extract is None or "include_contiguity" not in inspect.signature(extract).parameters:
        yield
        return

    def extracted(value: Any, include_contiguity: bool = True) -> Any:
        return extract(value, include_contiguity=include_contiguity and threading.get_ident() != thread)

    with mock.patch.object(internal(module), name, extracted):
        yield


def _pointwise(theirs: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    def describe(mode: Any, *operands: Any, **options: Any) -> torch.Tensor:
        if not options and len(operands) == 2 and all(type(each) is FakeTensor for each in operands):
            first, second = operands
            if first.dtype == second.dtype and first.device == second.device and first.dim() and second.dim():
                shape = joined(first.shape, second.shape)
                if shape is not None:
                    return FakeTensor(mode, torch.empty(shape, dtype=first.dtype, device="meta"), first.device)
        return theirs(mode, *operands, **options)

    return describe


def _cat(theirs: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    def describe(mode: Any, tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
        first = tensors[0]
        place = dim + first.dim() if dim < 0 else dim
        if not all(_differ_in(place, first, each) for each in tensors):
            with mode:
                return theirs(tensors, dim)
        shape = list(first.shape)
        shape[place] = sum(each.shape[place] for each in tensors)
        return FakeTensor(mode, torch.empty(shape, dtype=first.dtype, device="meta"), first.device)

    return describe


def _differ_in(axis: int, first: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether two tensors are alike but for the size of one axis that they have."""
    if (first.dtype, first.device, first.dim()) != (other.dtype, other.device, other.dim()):
        return False
    sizes = enumerate(zip(first.shape, other.shape, strict=True))
    return 0 <= axis < first.dim() and all(index == axis or same(*pair) for index, pair in sizes)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    plain = weight.dim() == 2 and x.dim() > 0 and x.dtype == weight.dtype and same(x.shape[-1], weight.shape[1])
    if not plain or (bias is not None and (bias.dtype != x.dtype or not _equal(bias.shape, weight.shape[:1]))):
        return None
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[_Size], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor | None:
    plain = x.is_floating_point() and 0 < len(normalized_shape) <= x.dim()
    plain = plain and _equal(x.shape[-len(normalized_shape) :], normalized_shape)
    if not plain or (weight is not None and (weight.dtype != x.dtype or not _equal(weight.shape, normalized_shape))):
        return None
    return x.new_empty(x.shape)


def _equal(first: Sequence[_Size], second: Sequence[_Size]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


@contextmanager
def _instead_of_decomposing(
    operator: torch._ops.OpOverload, describe: Callable[..., torch.Tensor | None], thread: int
) -> Iterator[None]:
    """Where only shapes are asked for, in this thread, describe a composite operator's value as ``describe`` does."""
    import torch

    key = torch._C.DispatchKey.CompositeImplicitAutograd
    fake = internal("torch._subclasses.fake_tensor", "FakeTensorMode")
    mode = internal("torch.utils._python_dispatch", "_get_current_dispatch_mode")
    known = all(hasattr(operator, name) for name in ("py_kernels", "_dispatch_cache", "_op_dk"))
    if fake is None or mode is None or not known or key in operator.py_kernels:
        yield
        return

    def kernel(*operands: Any, **options: Any) -> Any:
        # A tracer that stands above wants to see the operators that this one consists of.
        if threading.get_ident() == thread and isinstance(mode(), fake):
            found = describe(*operands, **options)
            if found is not None:
                return found
        return operator._op_dk(key, *operands, **options)

    try:
        with mock.patch.dict(operator.py_kernels, {key: kernel}):
            operator._dispatch_cache.clear()
            yield
    finally:
        operator._dispatch_cache.clear()  # not before: another thread would find the kernel and keep it

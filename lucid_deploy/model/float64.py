"""Run PyTorch code in float64 even where it requests float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_IS_PAUSED = ContextVar("_IS_PAUSED", default=False)


def all_in_float64() -> Any:
    """Return a context manager that replaces float32 by float64 in the arguments of PyTorch functions."""

    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    class _Float64(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if _IS_PAUSED.get():
                return func(*args, **(kwargs or {}))
            func = torch.Tensor.double if func is torch.Tensor.float else func
            named = {name: wider(value) for name, value in (kwargs or {}).items()}
            return func(*map(wider, args), **named)

    return _Float64()


@contextmanager
def types_as_written() -> Iterator[None]:
    """Pause :func:`all_in_float64`, for instance to read stored weights in the type that the file names."""
    token = _IS_PAUSED.set(True)
    try:
        yield
    finally:
        _IS_PAUSED.reset(token)

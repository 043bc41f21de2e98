"""Run code that computes in float32, whatever its type, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def all_in_float64() -> Any:
    """Return a context in which PyTorch code that casts to float32 casts to float64."""

    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    class _Float64(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            func = torch.Tensor.double if func is torch.Tensor.float else func
            named = {name: wider(value) for name, value in (kwargs or {}).items()}
            return func(*map(wider, args), **named)

    return _Float64()

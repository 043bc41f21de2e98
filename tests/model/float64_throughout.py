"""Models of transformers that compute in float64 throughout: parts of them convert to float32 whatever their type."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch


class _Torch(ModuleType):
    """PyTorch, of which float32 is float64."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


@contextmanager
def float64_throughout(model: torch.nn.Module) -> Iterator[None]:
    """Let the code of a float64 model's parts convert nothing to float32; rotary angles stay what they are."""
    names = {kind.__module__ for part in model.modules() for kind in type(part).__mro__}
    modules = [sys.modules[name] for name in sorted(names) if name.startswith("transformers.models.")]
    narrow = torch.Tensor.float

    def float_of(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        return x if x.dtype == torch.float64 else narrow(x, *given, **named)

    with mock.patch.object(torch.Tensor, "float", float_of):
        for module in modules:
            module.torch = _Torch("torch")  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module in modules:
                module.torch = torch  # type: ignore[attr-defined]

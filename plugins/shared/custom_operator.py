"""Custom PyTorch operators whose CPU kernels do not import PyTorch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import CustomOpDef


def custom_operator(name: str, shape: Callable[..., Any]) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Return a decorator that turns a function without side effects into a custom operator, one node of a traced graph.

    ``torch.library.custom_op`` wraps the function so that ``torch.compile`` does not trace into it. The first call of
    the wrapper imports the compiler, which takes a second of processor time even in processes that compile nothing. So
    the unwrapped function is registered for the CPU. Kernels registered later replace it.

    Args:
        name: The operator's name with its namespace. Its schema is derived from the function's annotations.
        shape: The fake implementation for tracing: returns empty tensors with the outputs' shapes and dtypes.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.register_fake(shape)
        torch.library.impl(name, "cpu", function)
        return operator

    return register

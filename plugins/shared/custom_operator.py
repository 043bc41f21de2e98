"""Custom PyTorch operators whose CPU kernels do not import PyTorch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import CustomOpDef


def custom_operator(name: str, shape: Callable[..., Any]) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Return a decorator that turns a function without side effects into a custom operator, one node of a traced graph.

    ``torch.library.custom_op`` wraps the function so that ``torch.compile`` leaves it alone. The first call of the
    wrapper imports the compiler: a second of processor time in every process, even one that compiles nothing. So the
    function is registered unwrapped for the CPU. Kernels that are registered later replace it.

    Args:
        name: The operator's name with its namespace. The function's annotations give its schema.
        shape: Returns empty tensors like the outputs from the operator's arguments; computes nothing, for tracing.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.register_fake(shape)
        torch.library.impl(name, "cpu", function)
        return operator

    return register

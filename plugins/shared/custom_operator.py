"""PyTorch's custom operators, whose kernels on the CPU do not bring PyTorch's compiler with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import CustomOpDef


def custom_operator(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Make a function an operator that tracing keeps whole: ``torch.library.custom_op`` without arguments to mutate.

    On the CPU the function is the kernel as it stands. ``custom_op`` wraps what it registers so that
    ``torch.compile`` leaves it alone, and the first call of that imports the compiler: a second of processor time in
    every process that runs the model and compiles nothing. The wrapped one stays for all other devices, and kernels
    registered later take the place of either.

    Args:
        name: The operator's name with its namespace. The function's annotations give its schema.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        operator = torch.library.custom_op(name, function, mutates_args=())
        torch.library.impl(name, "cpu", function)
        return operator

    return register

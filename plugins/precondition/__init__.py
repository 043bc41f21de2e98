"""The preconditioner: solve ``L Y = V`` for the values that LUCID attention averages."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid_deploy.plugins.precondition.torch_operator import precondition

__all__ = ["precondition"]


def __getattr__(name: str) -> Any:
    if name != "precondition":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lucid_deploy.plugins.precondition import torch_operator  # the only part that needs PyTorch

    return torch_operator.precondition

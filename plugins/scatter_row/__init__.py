"""Write one new row per batch row into a cache buffer of fixed size."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row

__all__ = ["scatter_row"]


def __getattr__(name: str) -> Any:
    if name != "scatter_row":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lucid_deploy.plugins.scatter_row import torch_operator  # the only part that needs PyTorch

    return torch_operator.scatter_row

"""The delta rule: a state that each token corrects by what it does not yet predict."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule

__all__ = ["delta_rule"]


def __getattr__(name: str) -> Any:
    if name != "delta_rule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lucid_deploy.plugins.delta_rule import torch_operator  # the only part that needs PyTorch

    return torch_operator.delta_rule

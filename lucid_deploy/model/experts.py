"""Products of rows with the matrices of their experts, in mixtures of experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lucid_deploy.plugins.expert_matmul.torch_operator import expert_matmul


def expert_product(module: Any, name: str, x: Tensor, expert: Tensor) -> Tensor:
    """Multiply rows ``(R, in)`` by a matrix of their experts ``(R,)``, and add its bias if there is one.

    The matrices are ``(E, out, in)``, or ``(E, in, out)`` where ``module.is_transposed``. The module's
    ``lucid_watchers`` are called with the name, the input, the experts and the output of each product.
    """
    weight = getattr(module, name)
    product = expert_matmul(x, expert, weight.transpose(-1, -2) if module.is_transposed else weight)
    if module.has_bias:
        product = product + getattr(module, f"{name}_bias")[expert]
    for watch in vars(module).get("lucid_watchers", ()):
        watch(name, x, expert, product)
    return product

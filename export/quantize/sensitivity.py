"""What rounding the weights of one kind costs the whole model's logits: through the solve, and all else behind it.

A kind is what a weight is within its layer: ``q_proj``, ``k_proj``, …, or ``lm_head``. An error of K enters L and is
carried by the solve into all later Y, which no product's own error shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.export.quantize.plan import EMBEDDING, short_name

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.lucid import LucidForCausalLM

MEASURED = 2048  # tokens at most, since their logits are compared
Array = np.ndarray[Any, np.dtype[Any]]
Rounded = Callable[[str], "torch.Tensor"]  # a weight's name to its rounded form, float32 (out, in)


def kind_of(name: str, tied: bool = False) -> str:
    """Return a weight's kind; a tied embedding is the head."""
    return "lm_head" if tied and name == EMBEDDING else short_name(name).rpartition(".")[2]


def by_kind(names: Iterator[str] | list[str], tied: bool) -> dict[str, list[str]]:
    """Group weights by their kinds."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name, tied), []).append(name)
    return kinds


class LogitErrors:
    """Measures relative errors of logits, of a model in float32 some of whose weights are exchanged.

    Args:
        checkpoint: The opened checkpoint; the whole model is held in float32.
        ids: Tokens, int64 ``(B, N)``.
    """

    def __init__(self, checkpoint: Checkpoint, ids: Array) -> None:
        import torch

        from lucid_deploy.model.checkpoint import load_model

        self._model: LucidForCausalLM = load_model(checkpoint)
        self._ids = torch.from_numpy(ids)
        self._exact = self._logits()

    def of(self, weights: dict[str, torch.Tensor]) -> float:
        """Return mean ‖difference‖ / ‖exact‖ over positions, with these weights in the place of their own."""
        import torch

        parameters = dict(self._model.named_parameters())
        before = {name: parameters[name].data for name in weights}
        try:
            for name, weight in weights.items():
                parameters[name].data = weight
            found = self._logits()
        finally:
            for name, weight in before.items():
                parameters[name].data = weight
        norms = [torch.linalg.vector_norm(x, dim=-1) for x in (found - self._exact, self._exact)]
        return float((norms[0] / norms[1]).double().mean())

    def _logits(self) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return torch.cat([self._model(row[None])[0] for row in self._ids])


def sensitivities(errors: LogitErrors, kinds: dict[str, list[str]], rounded: Rounded) -> dict[str, float]:
    """Return the error of the logits when the weights of one kind alone are rounded, by kind."""
    return {kind: errors.of({name: rounded(name) for name in names}) for kind, names in kinds.items()}

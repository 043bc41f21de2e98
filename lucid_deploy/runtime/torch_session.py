"""The PyTorch model behind the session interface."""

from __future__ import annotations

import numpy as np
import torch

from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.runtime.session import Array, Cache, Session

Layers = list[tuple[torch.Tensor, torch.Tensor]]


class TorchSession(Session[torch.Tensor]):
    """Runs a :class:`~lucid_deploy.model.lucid.LucidForCausalLM` where its parameters are."""

    def __init__(self, model: LucidForCausalLM, allow_extrapolation: bool = False) -> None:
        weight = model.model.embed_tokens.weight
        super().__init__(model.config, str(weight.dtype).removeprefix("torch."), "torch", allow_extrapolation)
        self._model = model
        self._device = weight.device

    def layer_arrays(self, cache: Cache[torch.Tensor]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        return [(_to_numpy(k), _to_numpy(y)) for k, y in cache.layers]

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        dtype = self._model.model.embed_tokens.weight.dtype
        return [(self._tensor(k).to(dtype), self._tensor(y).to(dtype)) for k, y in layers]

    def _run_prefill(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run(input_ids, mask, positions, layers, decode=False)

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run(input_ids, mask, positions, layers, decode=True)

    def _run(
        self, input_ids: Array, mask: Array, positions: Array, layers: Layers, decode: bool
    ) -> tuple[Array, Layers]:
        with torch.inference_mode():
            logits, present = self._model(
                self._tensor(input_ids),
                layers,
                None if mask.all() else self._tensor(mask),
                self._tensor(positions),
                decode=decode,
                last_only=True,
            )
        return _to_numpy(logits), present

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.cpu().numpy()

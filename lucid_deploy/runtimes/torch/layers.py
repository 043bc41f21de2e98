"""The layers of the PyTorch model, one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.model.lucid import LucidForCausalLM, last_token
from lucid_deploy.model.mixer import layer_steps
from lucid_deploy.runtimes.layers import LayerStates, NewTokens, Past, ScoringLayers
from lucid_deploy.runtimes.session import Array

LOGIT_ROWS = 64  # tokens whose logits are in memory at once: a vocabulary of 128k in float64 is 1 MiB a token


class TorchLayers(ScoringLayers):
    """Runs a :class:`~lucid_deploy.model.lucid.LucidForCausalLM` where its parameters are."""

    def __init__(self, model: LucidForCausalLM) -> None:
        weight = model.model.embed_tokens.weight
        dtype = str(weight.dtype).removeprefix("torch.")
        super().__init__(model.config, dtype, dtype if model.cache_dtype == "auto" else model.cache_dtype)
        self._model, self._dtype, self._device = model, weight.dtype, weight.device

    @torch.inference_mode()
    def run(
        self, tokens: NewTokens, past: Past, residuals: list[Array] | None = None, decode: bool = False
    ) -> LayerStates:
        body, config = self._model.model, self.config
        mask = None if tokens.mask.all() else torch.from_numpy(tokens.mask).to(self._device)
        positions = torch.from_numpy(np.ascontiguousarray(tokens.positions)).to(self._device)
        steps = layer_steps(config, positions, self._dtype, mask, decode)
        x = body.embed(torch.from_numpy(np.ascontiguousarray(tokens.input_ids)).to(self._device))
        states = LayerStates([_to_numpy(x)], [], [], np.zeros(0))
        n = tokens.input_ids.shape[1]
        for index, (layer, description) in enumerate(zip(self._model.layers(), self.layers, strict=True)):
            if residuals is not None:
                x = self._tensor(residuals[index])
            layout = decoded_layout(description.cache)
            arrays = zip(layout, past[index], strict=True)
            stored = layer.mixer.encode_cache(tuple(self._cached(tensor, array) for tensor, array in arrays))
            with _output_of(layer.mixer.value_projection if description.solves else None) as seen:
                x, present = layer(x, steps[index], stored)
            decoded = zip(layout, layer.mixer.decode_cache(present, self._dtype), strict=True)
            rows = {t.name: value[:, :, -n:] if t.sort == "rows" else value for t, value in decoded}
            states.residuals.append(_to_numpy(x))
            states.cached.append({name: _to_numpy(value) for name, value in rows.items()})
            states.given.append(
                _to_numpy(seen[0].view(*seen[0].shape[:2], -1, config.head_dim).transpose(1, 2)) if seen else None
            )
        if residuals is not None:
            x = self._tensor(residuals[-1])
        logits = self._model.logits(last_token(x, mask))
        return LayerStates(states.residuals, states.cached, states.given, _to_numpy(logits))

    def logits(self, input_ids: Array) -> Iterator[Array]:
        states = self.run(NewTokens.after(input_ids[None]), self.empty_past())
        x = self._tensor(states.residuals[-1][0])  # (N, C)
        for piece in x.split(LOGIT_ROWS):
            with torch.inference_mode():
                yield _to_numpy(self._model.logits(piece))

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, self._dtype)

    def _cached(self, tensor: CacheTensor, array: Array) -> torch.Tensor:
        """Return a cached tensor in the type the model keeps it in: states have their own."""
        given = torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
        return given.to(self._dtype if tensor.has_tokens else getattr(torch, tensor.dtype))


@contextlib.contextmanager
def _output_of(module: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Collect what a module returns while the context lasts; nothing for None."""
    seen: list[torch.Tensor] = []
    if module is None:
        yield seen
        return
    hook = module.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        yield seen
    finally:
        hook.remove()


def _to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.cpu().numpy()

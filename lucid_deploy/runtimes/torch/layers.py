"""The layers of the PyTorch model, one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lucid_deploy.model.lucid import Layer, LucidForCausalLM, last_token, rope_tables
from lucid_deploy.runtimes.layers import Past, ScoringLayers, States, Tokens
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
    def run(self, tokens: Tokens, past: Past, residuals: list[Array] | None = None, decode: bool = False) -> States:
        """See :meth:`~lucid_deploy.runtimes.layers.Layers.run`."""
        body, config = self._model.model, self.config
        mask = None if tokens.mask.all() else torch.from_numpy(tokens.mask).to(self._device)
        positions = torch.from_numpy(np.ascontiguousarray(tokens.positions)).to(self._device)
        rope = rope_tables(config, positions, self._dtype) if config.use_rope else None
        x = body.embed_tokens(torch.from_numpy(np.ascontiguousarray(tokens.input_ids)).to(self._device))
        states = States([_to_numpy(x)], [], [], [], np.zeros(0))
        n = tokens.input_ids.shape[1]
        for index, layer in enumerate(body.layers):
            assert isinstance(layer, Layer)
            if residuals is not None:
                x = self._tensor(residuals[index])
            seen: list[torch.Tensor] = []
            codec = layer.self_attn.codec
            stored = codec.encode(*map(self._tensor, past[index]))
            hook = layer.self_attn.v_proj.register_forward_hook(lambda *call, into=seen: into.append(call[2]))
            try:
                x, present = layer(x, rope, stored, mask, decode)
            finally:
                hook.remove()
            k, y = codec.decode(tuple(rows[:, :, -n:] for rows in present), self._dtype)
            v = seen[0].view(*seen[0].shape[:2], -1, config.head_dim).transpose(1, 2)  # (B, KV, N, D)
            states.residuals.append(_to_numpy(x))
            states.keys.append(_to_numpy(k))
            states.values.append(_to_numpy(v))
            states.solved.append(_to_numpy(y))
        if residuals is not None:
            x = self._tensor(residuals[-1])
        logits = self._model.lm_head(body.norm(last_token(x, mask)))
        return States(states.residuals, states.keys, states.values, states.solved, _to_numpy(logits))

    def logits(self, input_ids: Array) -> Iterator[Array]:
        """See :meth:`ScoringLayers.logits`."""
        states = self.run(Tokens.after(input_ids[None]), self.empty_past())
        x = self._tensor(states.residuals[-1][0])  # (N, C)
        for piece in x.split(LOGIT_ROWS):
            with torch.inference_mode():
                yield _to_numpy(self._model.lm_head(self._model.model.norm(piece)))

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, self._dtype)


def _to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.cpu().numpy()

"""The PyTorch model behind the session interface."""

from __future__ import annotations

import numpy as np
import torch

from lucid_deploy.cache.codecs import codec_for
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.runtimes.session import Array, Cache, Session
from lucid_deploy.runtimes.torch.threads import torch_threads

Layers = list[tuple[torch.Tensor, ...]]


class TorchSession(Session[torch.Tensor]):
    """Runs a :class:`~lucid_deploy.model.lucid.LucidForCausalLM` where its parameters are.

    Args:
        model: What runs.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
        threads: Threads within an operator, during runs of this session only; None: as PyTorch is set.
    """

    def __init__(self, model: LucidForCausalLM, allow_extrapolation: bool = False, threads: int | None = None) -> None:
        weight = model.model.embed_tokens.weight
        super().__init__(model.config, str(weight.dtype).removeprefix("torch."), "torch", allow_extrapolation)
        self._model, self._threads = model, threads
        self._device, self._dtype = weight.device, weight.dtype
        self._codec = codec_for(model.cache_dtype, weight.dtype)
        self.cache_dtype = self.dtype if model.cache_dtype == "auto" else model.cache_dtype

    @property
    def model(self) -> LucidForCausalLM:
        """The model that runs."""
        return self._model

    def layer_arrays(self, cache: Cache[torch.Tensor]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        decoded = [self._codec.decode(layer, self._dtype) for layer in cache.layers]
        return [(_to_numpy(k), _to_numpy(y)) for k, y in decoded]

    def _first_tokens(self, cache: Cache[torch.Tensor], length: int) -> Layers:
        return [tuple(x[:, :, :length] for x in layer) for layer in cache.layers]

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        return [self._codec.encode(self._tensor(k).to(self._dtype), self._tensor(y).to(self._dtype)) for k, y in layers]

    @property
    def gives_all_logits(self) -> bool:
        """See :attr:`Session.gives_all_logits`."""
        return True

    def _run_prefill_all(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run(input_ids, mask, positions, layers, decode=False, last_only=False)

    def _run_prefill(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run(input_ids, mask, positions, layers, decode=False)

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run(input_ids, mask, positions, layers, decode=True)

    def _run(
        self,
        input_ids: Array,
        mask: Array,
        positions: Array,
        layers: Layers,
        decode: bool,
        last_only: bool = True,
    ) -> tuple[Array, Layers]:
        with torch_threads(self._threads), torch.inference_mode():
            logits, present = self._model(
                self._tensor(input_ids),
                layers,
                None if mask.all() else self._tensor(mask),
                self._tensor(positions),
                decode=decode,
                last_only=last_only,
            )
        return _to_numpy(logits), present

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.cpu().numpy()

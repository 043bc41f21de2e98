"""The session that runs the PyTorch model."""

from __future__ import annotations

import numpy as np
import torch

from lucid_deploy.cache.layout import CacheTensor, first_of_ring
from lucid_deploy.cache.storage import SCALED, decoded_layout
from lucid_deploy.model.adapter_slots import AdapterRows
from lucid_deploy.model.description import drafts_unsupported_reason
from lucid_deploy.model.lucid import CausalModel
from lucid_deploy.runtimes.session import Array, Cache, NewTokens, Session
from lucid_deploy.runtimes.torch import CAPABILITIES
from lucid_deploy.runtimes.torch.threads import check_threads_are_here, torch_threads

CachedLayers = list[tuple[torch.Tensor, ...]]


class TorchSession(Session[torch.Tensor]):
    """Run a :class:`~lucid_deploy.model.lucid.CausalModel` on its device.

    Args:
        model: The model to run.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
        threads: Threads per operator, during runs of this session only; None: PyTorch's own setting.
        rows: Selects each row's adapter; None: the model has no adapters.
    """

    def __init__(
        self,
        model: CausalModel,
        allow_extrapolation: bool = False,
        threads: int | None = None,
        rows: AdapterRows | None = None,
    ) -> None:
        weight = model.embedding
        super().__init__(
            model.config,
            str(weight.dtype).removeprefix("torch."),
            "torch",
            allow_extrapolation,
            CAPABILITIES,
            None if model.cache_dtype == "auto" else model.cache_dtype,
        )
        self._model, self._threads, self._rows = model, threads, rows
        self._device, self._dtype = weight.device, weight.dtype

    @property
    def model(self) -> CausalModel:
        """The model that runs."""
        return self._model

    def run_default_adapter(self) -> None:
        """Make direct calls of the model, which choose no adapters, use the session's default adapter."""
        if self._rows is not None:
            self._rows.ids, self._rows.default = None, self.default_adapter

    def layer_arrays(self, cache: Cache[torch.Tensor]) -> list[tuple[Array, ...]]:
        pairs = zip(self._model.mixers(), cache.layers, strict=True)
        return [tuple(map(to_numpy, mixer.decode_cache(stored, self._row_type))) for mixer, stored in pairs]

    def _first_tokens(self, cache: Cache[torch.Tensor], length: int) -> CachedLayers:
        def cut(tensor: CacheTensor, x: torch.Tensor) -> torch.Tensor:
            if tensor.sort == "ring":
                places = torch.from_numpy(first_of_ring(cache.mask, length, x.shape[2])).to(x.device)  # (B, L)
                return torch.take_along_dim(x, places[:, None, :, None], dim=2)
            return x[:, :, :length] if tensor.has_tokens else x

        return [
            tuple(cut(tensor, x) for tensor, x in zip(layout, layer, strict=True))
            for layout, layer in zip(self.layout, cache.layers, strict=True)
        ]

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> CachedLayers:
        stored = []
        for mixer, layout, arrays in zip(self._model.mixers(), self.layout, layers, strict=True):
            pairs = zip(decoded_layout(layout), arrays, strict=True)
            stored.append(
                mixer.encode_cache(tuple(self._tensor(x).to(cached_type(t, self._row_type)) for t, x in pairs))
            )
        return stored

    @property
    def _row_type(self) -> torch.dtype:
        """The type of decoded rows: the model's, but float32 if rows have scales and the model is in half precision."""
        scaled_half = self.cache_dtype in SCALED and self._dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if scaled_half else self._dtype

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        return drafts_unsupported_reason(self.layers)

    @property
    def cuts_freely(self) -> bool:
        return True  # cutting rows makes a view; only rings, of a window's length, are copied

    @property
    def gives_all_logits(self) -> bool:
        return True

    def _run(self, stage: str, tokens: NewTokens, layers: CachedLayers, keep: int) -> tuple[Array, CachedLayers]:
        with torch_threads(self._threads), torch.inference_mode():
            if self._device.type == "cpu":
                check_threads_are_here()
            if self._rows is not None and tokens.adapter_ids is not None:
                self._rows.ids = self._tensor(tokens.adapter_ids)
            logits, present = self._model(
                self._tensor(tokens.input_ids),
                layers,
                None if tokens.mask.all() else self._tensor(tokens.mask),
                self._tensor(tokens.positions),
                decode=stage != "prefill",
                last_only=keep == 1,
            )
        return to_numpy(logits), present

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as an array, in float32 if it is of half precision."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.cpu().numpy()


def cached_type(tensor: CacheTensor, rows: torch.dtype) -> torch.dtype:
    """Return the torch type of a decoded cached tensor: ``rows`` for rows and rings; a state keeps its own type."""
    return rows if tensor.has_tokens else getattr(torch, tensor.dtype)

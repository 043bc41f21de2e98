"""Run the PyTorch model and record what each layer computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lucid_deploy.cache.layout import LayerLayout
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.lucid import CausalModel
from lucid_deploy.runtimes.layers import LayerStates, NewTokens, Past, ScoringLayers
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.torch.session import cached_type, to_numpy


class TorchLayers(ScoringLayers):
    """Run the layers of a :class:`~lucid_deploy.model.lucid.CausalModel` on its device."""

    def __init__(self, model: CausalModel) -> None:
        weight = model.embedding
        dtype = str(weight.dtype).removeprefix("torch.")
        super().__init__(model.config, dtype, dtype if model.cache_dtype == "auto" else model.cache_dtype)
        self._model, self._dtype, self._device = model, weight.dtype, weight.device

    @torch.inference_mode()
    def run(
        self, tokens: NewTokens, past: Past, residuals: list[Array] | None = None, decode: bool = False
    ) -> LayerStates:
        stored = [
            mixer.encode_cache(
                tuple(self._tensor(x, cached_type(t, self._dtype)) for t, x in zip(layout, arrays, strict=True))
            )
            for mixer, layout, arrays in zip(self._model.mixers(), self._layouts, past, strict=True)
        ]
        given = None if residuals is None else [self._tensor(x, self._dtype) for x in residuals]
        with _watched(self._model, self.layers, given) as seen:
            logits, present = self._model(
                self._tensor(tokens.input_ids),
                stored,
                None if tokens.mask.all() else self._tensor(tokens.mask),
                self._tensor(tokens.positions),
                decode=decode,
                last_only=True,
            )
        n, cached = tokens.input_ids.shape[1], []
        for mixer, layout, rows in zip(self._model.mixers(), self._layouts, present, strict=True):
            decoded = zip(layout, mixer.decode_cache(rows, self._dtype), strict=True)
            cached.append({t.name: to_numpy(x[:, :, -n:] if t.sort == "rows" else x) for t, x in decoded})
        values = [None if value is None else to_numpy(value) for value in seen.values]
        return LayerStates([to_numpy(x) for x in seen.residuals], cached, values, to_numpy(logits))

    @torch.inference_mode()
    def logits(self, input_ids: Array) -> Iterator[Array]:
        for piece in self._model.all_logits(self._tensor(input_ids[None])):
            yield to_numpy(piece)

    @property
    def _layouts(self) -> list[LayerLayout]:
        return [decoded_layout(layer.cache) for layer in self.layers]

    def _tensor(self, array: Array, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, dtype)


@dataclass
class _Seen:
    """What the layers computed in one call: the residual stream around each layer, and V before the solve."""

    residuals: list[torch.Tensor]  # (B, N, C)
    values: list[torch.Tensor | None]  # (B, KV, N, D)


@contextlib.contextmanager
def _watched(
    model: CausalModel, layers: tuple[LayerDescription, ...], residuals: list[torch.Tensor] | None
) -> Iterator[_Seen]:
    """Record what layers compute inside the context; ``residuals``, if given, are what layers and final norm read."""
    seen, undo = _Seen([], [None] * len(layers)), contextlib.ExitStack()

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        seen.residuals.append(x)
        if residuals is None:
            return None
        return ((residuals[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": residuals[0]})

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        x, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        seen.residuals.append(x)
        if residuals is None:
            return None
        following = residuals[len(seen.residuals) - 1]
        return following if rest is None else (following, *rest)

    with undo:
        undo.callback(model.layers()[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for layer in model.layers():
            undo.callback(layer.register_forward_hook(after).remove)
        for index, (mixer, layer_of) in enumerate(zip(model.mixers(), layers, strict=True)):
            if layer_of.solves and isinstance(mixer, GroupedQueryAttention):

                def mix(q: Any, k: Any, v: Any, *rest: Any, index: int = index, mix: Any = mixer.mix) -> Any:
                    seen.values[index] = v
                    return mix(q, k, v, *rest)

                mixer.mix = mix  # type: ignore[assignment, method-assign]
                undo.callback(delattr, mixer, "mix")
        yield seen

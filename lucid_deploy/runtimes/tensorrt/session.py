"""The session that runs TensorRT engines. Imports no torch; all CUDA calls are in ``device.py``.

With a growing cache, an engine reads the old cache and writes the new one into other memory, both taken from a pool.
With a static cache, decoding writes into buffers at fixed addresses, and is recorded as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from lucid_deploy.artifact import VERIFY, Artifact
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import LucidError
from lucid_deploy.model.description import drafts_unsupported_reason
from lucid_deploy.runtimes.graph_sessions import ArtifactSession
from lucid_deploy.runtimes.session import Array, Cache, NewTokens
from lucid_deploy.runtimes.tensorrt import CAPABILITIES
from lucid_deploy.runtimes.tensorrt.device import Device
from lucid_deploy.runtimes.tensorrt.device_cache import CachedLayers, DeviceCaches, DeviceTensor, MemoryPool
from lucid_deploy.runtimes.tensorrt.engine_contexts import DecodeStep, EngineContexts, Engines, Feed, StateCopy


@dataclass
class _BoundCache:
    """The static cache to which decoding is bound, and its decode step."""

    layers: CachedLayers
    mask: Array  # int64 (B, M), as it is on the device
    feed: Feed  # inputs of the decode engine
    results: dict[str, int]  # addresses of its outputs
    step: DecodeStep


class TensorRtSession(ArtifactSession[DeviceTensor]):
    """Run an artifact's engines on one GPU stream. The engines' limits apply even to extrapolation."""

    def __init__(self, artifact: Artifact, engines: Engines, device: Device, allow_extrapolation: bool = False) -> None:
        super().__init__(artifact, "tensorrt", allow_extrapolation, CAPABILITIES)
        self.limits = engines.manifest.limits
        self._engines, self._device, self._room = engines, device, self.limits.max_context
        pool = MemoryPool(device)
        self._contexts = EngineContexts(engines, device, pool)
        self._caches = DeviceCaches(self.layout, device, pool, self._room)
        self._static = artifact.manifest.cache == "static"
        self._bound: _BoundCache | None = None

    def close(self) -> None:
        """Save compiled kernels for the next start; the session cannot be used afterwards. Needs no call at exit."""
        self._contexts.close()

    def _checked(self, input_ids: Array, cache: Cache[DeviceTensor]) -> Array:
        if self._contexts.closed:
            raise LucidError("The session was closed. Open the artifact again.")
        return super()._checked(input_ids, cache)

    def _limit_remedy(self, option: str, wanted: int) -> str:
        again = self._engines.manifest.build_command(self._artifact, {option: wanted})
        return f"Build the engines with a larger {option}: {again}"

    def layer_arrays(self, cache: Cache[DeviceTensor]) -> list[tuple[Array, ...]]:
        self._device.activate()
        stored = self._caches.each(
            lambda layout, tensor: self._caches.fetch(layout, tensor, cache.batch, cache.length), cache.layers
        )
        return [decode_layer(layer, layout) for layout, layer in zip(self.layout, stored, strict=True)]

    def fork(self, cache: Cache[DeviceTensor]) -> Cache[DeviceTensor]:
        # Decoding writes into a static cache's buffers, so they are copied.
        if not self._static:
            return super().fork(cache)
        self._device.activate()
        copies = self._caches.each(
            lambda layout, tensor: self._caches.moved(layout, tensor, cache.batch, cache.length, tensor.pitch),
            cache.layers,
        )
        return Cache(cache.mask, copies, cache.adapter_ids)

    def _first_tokens(self, cache: Cache[DeviceTensor], length: int) -> CachedLayers:
        return cache.layers  # rows beyond the cache's length are not read

    @property
    def cuts_freely(self) -> bool:
        # With a growing cache, the next step copies the remaining rows.
        return True

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        if VERIFY in self._contexts:
            return None
        again = self._engines.manifest.build_command(self._artifact, {"--speculate": ""})
        return drafts_unsupported_reason(self.layers) or f"there is no engine that verifies drafts; {again} builds one"

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> CachedLayers:
        self._device.activate()
        layers = [encode_layer(arrays, layout) for layout, arrays in zip(self.layout, layers, strict=True)]
        batch = len(layers[0][0])
        pairs = (
            pair
            for layout, arrays in zip(self.layout, layers, strict=True)
            for pair in zip(layout, arrays, strict=True)
        )
        tokens = max((array.shape[2] for layout, array in pairs if layout.has_tokens), default=0)
        self._check_limits(batch, tokens)
        return self._caches.each(lambda layout, array: self._caches.send(layout, array, batch, tokens), layers)

    def _run(self, stage: str, tokens: NewTokens, layers: CachedLayers, keep: int) -> tuple[Array, CachedLayers]:
        if not self._static or stage == "prefill":
            return self._run_growing(stage, tokens, layers)
        return self._run_in_place(tokens, layers) if stage == "decode" else self._verify_in_place(tokens, layers)

    def _run_growing(self, stage: str, tokens: NewTokens, layers: CachedLayers) -> tuple[Array, CachedLayers]:
        """Run an engine that reads the cache, and writes it and the new tokens to other memory."""
        self._device.activate()
        batch, new = tokens.input_ids.shape
        past, total = tokens.past, tokens.past + new
        packed = self._caches.each(lambda layout, tensor: self._caches.packed(layout, tensor, batch, past), layers)
        feed = self._contexts.upload(stage, tokens.feed())
        feed |= {
            name: (tensor.address, layout.batch_shape(batch, past))
            for name, layout, tensor in self._caches.named("past_key_values", packed)
        }
        present = [tuple(self._caches.new(layout, batch, total) for layout in layer) for layer in self.layout]
        gives_all = stage == VERIFY or (stage == "prefill" and self._artifact.manifest.logits == "all")
        logits = self._logits(batch, new if gives_all else 1)
        results = {name: tensor.address for name, _, tensor in self._caches.named("present", present)}
        results["logits"] = self._contexts.room(f"{stage}.logits", logits.nbytes)
        self._contexts.bind(stage, feed, results)
        self._contexts.execute(stage)
        self._device.download(logits, results["logits"])
        return logits, present

    def _run_in_place(self, tokens: NewTokens, layers: CachedLayers) -> tuple[Array, CachedLayers]:
        """Decode into the buffers of a static cache."""
        self._device.activate()
        batch, past, mask = len(tokens.input_ids), tokens.past, tokens.mask
        bound = self._bound_to(layers, mask[:, :past])
        logits = self._logits(batch, 1)  # allocated before states change, because it may fail
        self._contexts.upload("decode", _static_feed(tokens))
        bound.step.run(partial(self._contexts.execute, "decode"), mask[:, past])
        self._count_new(bound, mask, past)
        self._device.download(logits, bound.results["logits"])
        return logits, bound.layers

    def _verify_in_place(self, tokens: NewTokens, layers: CachedLayers) -> tuple[Array, CachedLayers]:
        """Verify draft tokens, which writes them into the buffers of a static cache; no CUDA graph is recorded."""
        self._device.activate()
        (batch, new), past, mask = tokens.input_ids.shape, tokens.past, tokens.mask
        bound = self._bound_to(layers, mask[:, :past])
        logits = self._logits(batch, new)
        results = bound.results | {"logits": self._contexts.room(f"{VERIFY}.logits", logits.nbytes)}
        self._contexts.bind(VERIFY, bound.feed | self._contexts.upload(VERIFY, _static_feed(tokens)), results)
        self._contexts.execute(VERIFY)
        self._count_new(bound, mask, past)
        self._device.download(logits, results["logits"])
        return logits, bound.layers

    def _bound_to(self, layers: CachedLayers, mask: Array) -> _BoundCache:
        """Return the buffers of a cache with this mask, bool ``(B, P)``; decoding is bound to them from now on."""
        bound, past = self._bound, mask.shape[1]
        if bound is None or bound.layers is not layers:
            return self._bind_buffers(layers, mask)
        if (bound.mask[:, :past] != mask).any():  # drafts were rejected; cache_length masks all later columns
            bound.mask[:, :past] = mask
            self._device.upload(bound.feed["attention_mask"][0], bound.mask)
        return bound

    def _count_new(self, bound: _BoundCache, mask: Array, past: int) -> None:
        """Write the mask of new columns for the next steps; in this step the graph counted all as tokens."""
        new = slice(past, mask.shape[1])
        bound.mask[:, new] = mask[:, new]
        address, row = bound.feed["attention_mask"][0], bound.mask.shape[1]
        for index in range(len(mask)):
            self._device.upload(address + 8 * (index * row + past), np.ascontiguousarray(bound.mask[index, new]))

    def _bind_buffers(self, layers: CachedLayers, mask: Array) -> _BoundCache:
        """Copy a cache into buffers, unless it already is in some, and bind the decode engine to them."""
        if self._bound is not None:
            self._bound.step.drop()
        self._bound = None
        batch, past = mask.shape
        room = self._room
        moved = self._caches.each(
            lambda layout, tensor: (
                tensor
                if tensor.pitch == room or not layout.has_tokens
                else self._caches.moved(layout, tensor, batch, past, room)
            ),
            layers,
        )
        whole = np.zeros((batch, room), np.int64)
        whole[:, :past] = mask
        column = np.zeros((batch, 1), np.int64)
        inputs = {"input_ids": column, "attention_mask": whole, "position_ids": column, "cache_length": column[:, 0]}
        if self.adapters is not None:
            inputs["adapter_ids"] = column[:, 0]
        feed = self._contexts.upload("decode", inputs)
        feed |= {
            name: (tensor.address, layout.batch_shape(batch, room))
            for name, layout, tensor in self._caches.named("past_key_values", moved)
        }
        results, states = {}, []
        for name, layout, tensor in self._caches.named("present", moved):
            results[name] = tensor.address  # rows: the same memory
            if not layout.has_tokens:
                results[name] = self._contexts.room(f"decode.{name}", batch * layout.size(room))
                states.append(StateCopy(tensor.address, results[name], layout.size(room)))
        results["logits"] = self._contexts.room("decode.logits", self._logits(batch, 1).nbytes)
        self._contexts.bind("decode", feed, results)
        step = DecodeStep(self._device, batch, states)
        self._bound = _BoundCache(moved, whole, feed, results, step)
        return self._bound

    def _logits(self, batch: int, rows: int) -> Array:
        return np.empty((batch, rows, self.config.vocab_size), np.float32)


def _static_feed(tokens: NewTokens) -> dict[str, Array]:
    """Return a step's inputs with a static cache: the tokens, and in ``cache_length`` how many columns precede them."""
    length = np.full((len(tokens.input_ids),), tokens.past, np.int64)
    feed = {"input_ids": tokens.input_ids, "position_ids": tokens.positions, "cache_length": length}
    return feed if tokens.adapter_ids is None else {**feed, "adapter_ids": tokens.adapter_ids}

"""TensorRT engines behind the session interface. Imports no torch; all CUDA calls are in ``device.py``.

With a growing cache an engine reads the past and writes the present into other memory, both taken from a pool of equal
blocks. With a static cache decoding writes into buffers that stay where they are, and is recorded as a CUDA graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.last_token import last_token_logits
from lucid_deploy.runtimes.session import Array, Cache, Session
from lucid_deploy.runtimes.several import layers_obstacle
from lucid_deploy.runtimes.tensorrt.callbacks import explain
from lucid_deploy.runtimes.tensorrt.capabilities import CAPABILITIES
from lucid_deploy.runtimes.tensorrt.decode_step import DecodeStep, StateCopy
from lucid_deploy.runtimes.tensorrt.device import Device, bytes_of
from lucid_deploy.runtimes.tensorrt.device_memory import DeviceBlock, DeviceTensor, MemoryPool
from lucid_deploy.runtimes.tensorrt.manifest import EngineManifest
from lucid_deploy.runtimes.tensorrt.operators import VERIFY

Layers = list[tuple[DeviceTensor, ...]]  # per layer the tensors of its layout, such as K and Y
Feed = dict[str, tuple[int, tuple[int, ...]]]  # address and shape of every input


@dataclass(frozen=True)
class Engines:
    """Loaded engines, as a session needs them.

    Attributes:
        manifest: What they were built for.
        make_context: Returns a new execution context of a stage; contexts of one engine share its weights.
        tensors: Names of each stage's inputs and outputs; TensorRT drops an input that nothing reads.
        errors: What TensorRT has reported since the engines were loaded.
        save: Keeps for the next start what was compiled while the engines ran.
    """

    manifest: EngineManifest
    make_context: Callable[[str], Any]
    tensors: dict[str, frozenset[str]]
    errors: list[str] = field(default_factory=list)
    save: Callable[[], None] = lambda: None


@dataclass
class _BoundCache:
    """A static cache that decoding is bound to, and the step that does it."""

    layers: Layers
    mask: Array  # int64 (B, M), as it is on the device
    feed: Feed
    results: dict[str, int]
    step: DecodeStep


class TensorRtSession(Session[DeviceTensor]):
    """Runs an artifact's engines on one GPU stream.

    Args:
        artifact: The opened artifact.
        engines: Its engines.
        device: The GPU, with a stream of its own.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted; the engines' own limits
            hold in any case.
    """

    def __init__(self, artifact: Artifact, engines: Engines, device: Device, allow_extrapolation: bool = False) -> None:
        self.limits = engines.manifest.limits
        shortest = min(artifact.config.max_position_embeddings, self.limits.max_context)
        config = replace(artifact.config, max_position_embeddings=shortest)
        layers = artifact.manifest.layers
        types = artifact.manifest.dtype, artifact.manifest.cache_dtype
        super().__init__(config, types[0], "tensorrt", allow_extrapolation, CAPABILITIES, types[1], layers)
        self.identity = artifact.identity
        self._artifact, self._engines, self._device = artifact, engines, device
        self._pool = MemoryPool(device)
        self._contexts = {stage: engines.make_context(stage) for stage in engines.manifest.engines}
        self._static = artifact.manifest.cache == "static"
        self._scratch: dict[str, DeviceBlock] = {}
        self._bound: _BoundCache | None = None
        # Also at the end of the process; it holds the contexts, which must go before what they were made of.
        self._end = weakref.finalize(self, _finish, self._contexts, engines.save)

    def close(self) -> None:
        """Keep what was compiled for the next start; the session cannot be used any more. Needs no call at exit."""
        self._end()

    def share(self, device: Device) -> TensorRtSession:
        """Return a second session on the same engines: contexts, stream and memory of its own, weights in common.

        Args:
            device: The same GPU, with another stream.
        """
        return TensorRtSession(self._artifact, self._engines, device, self.allow_extrapolation)

    def prefill(
        self,
        input_ids: Array,
        cache: Cache[DeviceTensor],
        mask: Array | None = None,
        chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """See :meth:`Session.prefill`; no chunk is longer than the engine accepts."""
        most = self.limits.prefill_chunk
        return super().prefill(input_ids, cache, mask, most if chunk is None else min(chunk, most), progress)

    def _checked(self, input_ids: Array, cache: Cache[DeviceTensor]) -> Array:
        if not self._end.alive:
            raise LucidError("The session was closed. Open the artifact again.")
        input_ids = super()._checked(input_ids, cache)
        self._check_fits(cache.batch, cache.length + input_ids.shape[1])
        return input_ids

    def _check_fits(self, batch: int, tokens: int) -> None:
        for found, most, option, what in (
            (batch, self.limits.max_batch, "--max-batch", "rows"),
            (tokens, self.limits.max_context, "--max-context", "tokens"),
        ):
            if found > most:
                raise LucidError(
                    f"The engines were built for up to {most} {what}, not {found}. Build them with a larger {option}: "
                    f"lucid-deploy build {self._artifact.directory} {option} {found} --overwrite"
                )

    def layer_arrays(self, cache: Cache[DeviceTensor]) -> list[tuple[Array, ...]]:
        """See :meth:`Session.layer_arrays`."""
        self._device.activate()

        def fetch(layout: CacheTensor, tensor: DeviceTensor) -> Array:
            array = np.empty(layout.batch_shape(cache.batch, cache.length), bytes_of(layout.dtype))
            self._device.download(array, self._packed(layout, tensor, cache.batch, cache.length).address)
            return array.astype(np.float32) if layout.dtype == "bfloat16" else array

        stored = self._each(fetch, cache.layers)
        return [decode_layer(layer, layout) for layout, layer in zip(self.layout, stored, strict=True)]

    def fork(self, cache: Cache[DeviceTensor]) -> Cache[DeviceTensor]:
        """See :meth:`Session.fork`; buffers that decoding writes into are copied."""
        if not self._static:
            return super().fork(cache)
        self._device.activate()
        copies = self._each(
            lambda layout, tensor: self._moved(layout, tensor, cache.batch, cache.length, tensor.pitch), cache.layers
        )
        return Cache(cache.mask, copies)

    def _first_tokens(self, cache: Cache[DeviceTensor], length: int) -> Layers:
        return cache.layers  # what lies beyond the cache's length is not read

    @property
    def cuts_freely(self) -> bool:
        """See :attr:`Session.cuts_freely`; the next step with a growing cache copies the rows that are left, once."""
        return True

    @property
    def several_obstacle(self) -> str | None:
        """See :attr:`Session.several_obstacle`."""
        if VERIFY in self._contexts:
            return None
        again = f"lucid-deploy build {self._artifact.directory} --speculate --overwrite"
        return layers_obstacle(self.layers) or f"there is no engine that verifies drafts; {again} builds one"

    @property
    def context_limit(self) -> int | None:
        """See :attr:`Session.context_limit`; what the engines were built for holds in any case."""
        return min(super().context_limit or self.limits.max_context, self.limits.max_context)

    @property
    def batch_limit(self) -> int | None:
        """See :attr:`Session.batch_limit`."""
        return self.limits.max_batch

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> Layers:
        self._device.activate()
        layers = [encode_layer(arrays, layout) for layout, arrays in zip(self.layout, layers, strict=True)]
        batch = len(layers[0][0])
        pairs = (
            pair
            for layout, arrays in zip(self.layout, layers, strict=True)
            for pair in zip(layout, arrays, strict=True)
        )
        tokens = max((array.shape[2] for layout, array in pairs if layout.has_tokens), default=0)
        self._check_fits(batch, tokens)

        def send(layout: CacheTensor, array: Array) -> DeviceTensor:
            tensor = self._new(layout, batch, tokens)
            self._device.upload(tensor.address, np.ascontiguousarray(array, dtype=bytes_of(layout.dtype)))
            return tensor

        return self._each(send, layers)

    def _run_prefill(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        logits, present = self._run_growing("prefill", input_ids, mask, positions, layers)
        return last_token_logits(logits, mask), present

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        if self._static:
            return self._run_in_place(input_ids, mask, positions, layers)
        return self._run_growing("decode", input_ids, mask, positions, layers)

    def _run_several(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        if self._static:
            return self._verify_in_place(input_ids, mask, positions, layers)
        return self._run_growing(VERIFY, input_ids, mask, positions, layers)

    def _run_growing(
        self, stage: str, input_ids: Array, mask: Array, positions: Array, layers: Layers
    ) -> tuple[Array, Layers]:
        """Run an engine that reads the past and writes the present elsewhere."""
        self._device.activate()
        batch, new = input_ids.shape
        total = mask.shape[1]
        past = total - new
        packed = self._each(lambda layout, tensor: self._packed(layout, tensor, batch, past), layers)
        feed = self._upload(
            stage, {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "position_ids": positions}
        )
        feed |= {
            name: (tensor.address, layout.batch_shape(batch, past))
            for name, layout, tensor in self._named("past_key_values", packed)
        }
        present = [tuple(self._new(layout, batch, total) for layout in layer) for layer in self.layout]
        gives_all = stage == VERIFY or (stage == "prefill" and self._artifact.manifest.logits == "all")
        logits = self._logits(batch, new if gives_all else 1)
        results = {name: tensor.address for name, _, tensor in self._named("present", present)}
        results["logits"] = self._room(f"{stage}.logits", logits.nbytes)
        self._bind(stage, feed, results)
        self._execute(stage)
        self._device.download(logits, results["logits"])
        return logits, present

    def _run_in_place(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        """Decode into the buffers of a static cache."""
        self._device.activate()
        batch, past = input_ids.shape[0], mask.shape[1] - 1
        bound = self._bound_to(layers, mask[:, :past])
        self._upload("decode", _tokens(input_ids, positions, past))
        bound.step.run(partial(self._execute, "decode"), mask[:, past])
        self._count_new(bound, mask, past)
        logits = self._logits(batch, 1)
        self._device.download(logits, bound.results["logits"])
        return logits, bound.layers

    def _verify_in_place(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        """Run the tokens of a draft into the buffers that decoding is bound to; nothing is recorded."""
        self._device.activate()
        (batch, new), past = input_ids.shape, mask.shape[1] - input_ids.shape[1]
        bound = self._bound_to(layers, mask[:, :past])
        logits = self._logits(batch, new)
        results = bound.results | {"logits": self._room(f"{VERIFY}.logits", logits.nbytes)}
        self._bind(VERIFY, bound.feed | self._upload(VERIFY, _tokens(input_ids, positions, past)), results)
        self._execute(VERIFY)
        self._count_new(bound, mask, past)
        self._device.download(logits, results["logits"])
        return logits, bound.layers

    def _bound_to(self, layers: Layers, mask: Array) -> _BoundCache:
        """Return the buffers of a cache with these tokens, to which decoding is bound from now on."""
        bound, past = self._bound, mask.shape[1]
        if bound is None or bound.layers is not layers:
            return self._bind_buffers(layers, mask)
        if (bound.mask[:, :past] != mask).any():  # tokens have been taken back; what lies behind is masked by length
            bound.mask[:, :past] = mask
            self._device.upload(bound.feed["attention_mask"][0], bound.mask)
        return bound

    def _count_new(self, bound: _BoundCache, mask: Array, past: int) -> None:
        """Say what new rows are from the next step on; in their own, the graph counts all of them as tokens."""
        new = slice(past, mask.shape[1])
        bound.mask[:, new] = mask[:, new]
        address, row = bound.feed["attention_mask"][0], bound.mask.shape[1]
        for index in range(len(mask)):
            self._device.upload(address + 8 * (index * row + past), np.ascontiguousarray(bound.mask[index, new]))

    def _bind_buffers(self, layers: Layers, mask: Array) -> _BoundCache:
        """Move a cache into buffers, unless it is in some already, and point the decode engine at them."""
        if self._bound is not None:
            self._bound.step.drop()
        self._bound = None
        batch, past = mask.shape
        room = self.limits.max_context
        moved = self._each(
            lambda layout, tensor: (
                tensor
                if tensor.pitch == room or not layout.has_tokens
                else self._moved(layout, tensor, batch, past, room)
            ),
            layers,
        )
        whole = np.zeros((batch, room), np.int64)
        whole[:, :past] = mask
        column = np.zeros((batch, 1), np.int64)
        feed = self._upload(
            "decode",
            {"input_ids": column, "attention_mask": whole, "position_ids": column, "cache_length": column[:, 0]},
        )
        feed |= {
            name: (tensor.address, layout.batch_shape(batch, room))
            for name, layout, tensor in self._named("past_key_values", moved)
        }
        results, states = {}, []
        for name, layout, tensor in self._named("present", moved):
            results[name] = tensor.address  # rows: the same memory
            if not layout.has_tokens:
                results[name] = self._room(f"decode.{name}", batch * layout.size(room))
                states.append(StateCopy(tensor.address, results[name], layout.size(room)))
        results["logits"] = self._room("decode.logits", self._logits(batch, 1).nbytes)
        self._bind("decode", feed, results)
        step = DecodeStep(self._device, batch, states)
        self._bound = _BoundCache(moved, whole, feed, results, step)
        return self._bound

    def _bind(self, stage: str, feed: Feed, results: dict[str, int]) -> None:
        context, known = self._contexts[stage], self._engines.tensors[stage]
        for name, (address, shape) in feed.items():
            if name not in known:
                continue
            if not context.set_input_shape(name, shape):
                raise self._failed(stage, f"refuses the shape {shape} of {name}")
            context.set_tensor_address(name, address)
        for name, address in results.items():
            context.set_tensor_address(name, address)

    def _execute(self, stage: str) -> None:
        if not self._contexts[stage].execute_async_v3(self._device.stream):
            raise self._failed(stage, "fails")

    def _failed(self, stage: str, what: str) -> LucidError:
        reason = explain(self._engines.errors)
        self._engines.errors.clear()
        return LucidError(f"The {stage} engine {what}: {reason}")

    def _upload(self, stage: str, arrays: dict[str, Array]) -> Feed:
        """Send small inputs into memory of their own that stays where it is while it is large enough."""
        feed: Feed = {}
        for name, array in arrays.items():
            address = self._room(f"{stage}.{name}", array.nbytes)
            self._device.upload(address, np.ascontiguousarray(array))
            feed[name] = (address, array.shape)
        return feed

    def _room(self, name: str, size: int) -> int:
        block = self._scratch.get(name)
        if block is None or block.size < size:  # a mask grows with every token, so there is room for twice as many
            block = self._scratch[name] = self._pool.take(1 << max(size - 1, 1).bit_length())
        return block.address

    def _logits(self, batch: int, rows: int) -> Array:
        return np.empty((batch, rows, self.config.vocab_size), np.float32)

    def _each(self, do: Callable[[CacheTensor, Any], Any], layers: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Do something to every tensor of a cache, given its description; return the results, layer by layer."""
        return [
            tuple(do(layout, tensor) for layout, tensor in zip(described, tensors, strict=True))
            for described, tensors in zip(self.layout, layers, strict=True)
        ]

    def _named(self, prefix: str, layers: Layers) -> list[tuple[str, CacheTensor, DeviceTensor]]:
        return [
            (f"{prefix}.{index}.{layout.name}", layout, tensor)
            for index, (described, tensors) in enumerate(zip(self.layout, layers, strict=True))
            for layout, tensor in zip(described, tensors, strict=True)
        ]

    def _new(self, layout: CacheTensor, batch: int, tokens: int) -> DeviceTensor:
        """Return a tensor for some tokens; its block is large enough for the whole context, so all are alike."""
        most = self.limits.max_context if tokens or not layout.has_tokens else 0
        return DeviceTensor(self._pool.take(batch * layout.size(most)), tokens)

    def _packed(self, layout: CacheTensor, tensor: DeviceTensor, batch: int, tokens: int) -> DeviceTensor:
        """Return the tensor with its tokens right behind each other, itself if they are; a state is."""
        if tensor.pitch == tokens or not layout.has_tokens:
            return tensor
        return self._moved(layout, tensor, batch, tokens, tokens)

    def _moved(self, layout: CacheTensor, tensor: DeviceTensor, batch: int, tokens: int, pitch: int) -> DeviceTensor:
        """Return a copy with another pitch; what lies between its tokens and the pitch is zero."""
        moved = self._new(layout, batch, pitch)
        if not layout.has_tokens:
            size = batch * layout.size(pitch)
            self._device.copy_rows(moved.address, size, tensor.address, size, size, 1)
            return moved
        heads, width = layout.shape
        rows, row = batch * heads, width * bytes_of(layout.dtype).itemsize
        if pitch > tokens:
            self._device.fill_zero(moved.address, rows * pitch * row)
        self._device.copy_rows(moved.address, pitch * row, tensor.address, tensor.pitch * row, tokens * row, rows)
        return moved


def _tokens(input_ids: Array, positions: Array, past: int) -> dict[str, Array]:
    """Return the inputs that say which tokens are new, and behind how many."""
    return {
        "input_ids": input_ids,
        "position_ids": positions,
        "cache_length": np.full((len(input_ids),), past, np.int64),
    }


def _finish(contexts: dict[str, Any], save: Callable[[], None]) -> None:
    contexts.clear()
    save()

"""Base classes of sessions that run an artifact's graphs, and decoding with a static cache.

With a static cache, prefill works on growing tensors. The first decode step moves them into buffers with room to spare;
when that room is used up, larger buffers take their place. Until then every step reads and writes the same memory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.layout import CacheTensor, first_tokens, held, new_buffer
from lucid_deploy.runtimes.runtime import Capabilities
from lucid_deploy.runtimes.session import Array, Cache, NewTokens, Session, Tensor

ROWS = "rows."  # prefix of the names of the running rows' inputs and outputs in the graph of StaticSession.run_shared
_GRAIN = 256  # a buffer's length in columns is a multiple of this …
_SPARE = 8  # … and at least an eighth (1 / 8) longer than the cache it holds, so that copies cost little per token

ArrayLayers: TypeAlias = list[tuple[Array, ...]]


class ArtifactSession(Session[Tensor]):
    """A session that runs the graphs of an artifact, or engines made of them."""

    def __init__(self, artifact: Artifact, runtime: str, allow_extrapolation: bool, capabilities: Capabilities) -> None:
        manifest = artifact.manifest
        super().__init__(
            artifact.config,
            manifest.dtype,
            runtime,
            allow_extrapolation,
            capabilities,
            manifest.cache_dtype,
            manifest.layers,
        )
        self._artifact = artifact

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        return self._artifact.drafts_unsupported_reason

    @property
    def gives_all_logits(self) -> bool:
        return self._artifact.manifest.logits == "all" and self.limits is None  # limits may forbid so long a run

    def _named(self, layers: list[tuple[Tensor, ...]], prefix: str = "past_key_values") -> dict[str, Tensor]:
        """Return a cache's tensors by the graphs' input names; with ``prefix`` ``present``, by output names."""
        return {
            f"{prefix}.{index}.{tensor.name}": value
            for index, (layout, layer) in enumerate(zip(self.layout, layers, strict=True))
            for tensor, value in zip(layout, layer, strict=True)
        }

    def _by_layer(self, present: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Group by layer the outputs that a graph gives after the logits."""
        rest = iter(present)
        return [tuple(next(rest) for _ in layout) for layout in self.layout]


@dataclass(frozen=True)
class BoundStep:
    """A step of N new tokens per row, bound to arrays; the caller writes the tokens into these before each run."""

    input_ids: Array  # int64 (B, N)
    positions: Array  # int64 (B, N)
    binding: Any  # the runtime's binding of inputs and outputs
    replaced: list[tuple[Array, Array]]  # input and output of each tensor that copy_back copies: rings and states

    def copy_back(self) -> None:
        """Copy new rings and states to where the next step reads them; call it last in a step."""
        for buffer, output in self.replaced:
            buffer[...] = output


@dataclass
class _BoundBuffers:
    """Numpy arrays that bound steps read from and write into."""

    layers: ArrayLayers  # per layer the buffers of its layout; K, Y and their scales, if any, are (B, KV, M, ·)
    mask: Array  # int64 (B, M); M is the buffers' length in columns
    length: Array  # int64 (B,), columns of the cache before the new tokens
    adapter_ids: Array  # int64 (B,)
    steps: dict[int, BoundStep]  # by N


class StaticSession(Session[Any]):
    """Decoding with a static cache: a mixin, listed before a runtime's session class for growing caches.

    Cached tensors are numpy arrays: after prefill as long as the cache, after decoding or truncating with spare room.
    """

    _bound: _BoundBuffers | None = None

    @property
    def in_place(self) -> StaticSession:
        return self

    @property
    def shares_steps(self) -> bool:
        """Whether a chunk of a prompt and a decode step of other rows can run together, which is faster."""
        return False

    def prepare_shared(self) -> None:
        """Load what :meth:`run_shared` needs, where :attr:`shares_steps` is True."""

    def bind(
        self,
        layers: Sequence[tuple[Array, ...]],
        mask: Array,
        length: Array,
        adapter_ids: Array,
        new: int,
        shared: bool = False,
    ) -> BoundStep:
        """Bind arrays to a step of N = ``new`` tokens per row, which reads them and writes new rows into the buffers.

        The arrays must outlive the binding. New rows are written from ``length`` on, and the buffers must have room for
        all N. A row's padding comes after its new tokens, and is never read if the next ``length`` does not count it.

        Args:
            layers: Per layer the buffers, ``(B, KV, M, ·)``; of a ring ``(B, KV, window, ·)``, of a state ``(B, …)``.
            mask: Int64 ``(B, M)``; 0 at padding. Columns of a row from its length on are ignored.
            length: Int64 ``(B,)``, tokens in each row before the new ones.
            adapter_ids: Int64 ``(B,)``, the adapter of each row; not read by graphs without adapters.
            new: 1 to decode, more for ``decode_several``.
            shared: Whether the step is for :meth:`run_shared`; ``new`` is 1 then.
        """
        ids, positions = np.zeros((len(mask), new), np.int64), np.zeros((len(mask), new), np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "cache_length": length}
        if self.adapters is not None:
            inputs["adapter_ids"] = adapter_ids
        return BoundStep(ids, positions, *self.bind_arrays(inputs, layers, shared))

    @abstractmethod
    def bind_arrays(
        self, inputs: dict[str, Array], layers: Sequence[tuple[Array, ...]], shared: bool = False
    ) -> tuple[Any, list[tuple[Array, Array]]]:
        """Bind a step's inputs, by name, and its buffers; return ``binding`` and ``replaced`` of its BoundStep."""

    @abstractmethod
    def run_bound(self, binding: BoundStep) -> Array:
        """Run one step on the bound arrays; return logits, float ``(B, N, vocab)``."""

    def run_shared(self, step: BoundStep, input_ids: Array, cache: Cache[Any]) -> tuple[Array, Array]:
        """Run a step that was bound with ``shared`` together with the next tokens of a prompt, int64 ``(1, N)``.

        Returns:
            The step's logits, float ``(B, 1, vocab)``, and those of the prompt's last token, ``(1, 1, vocab)``, as
            :meth:`run_bound` and :meth:`prefill` give them. ``cache``, the prompt's, is changed in place.
        """
        input_ids = self._checked(input_ids, cache)
        tokens = self._new_tokens(input_ids, np.ones(input_ids.shape, bool), cache)
        logits, last, layers = self._run_both(step, tokens, self._held_layers(cache.layers, tokens.past))
        return logits, self._add("prefill", tokens, cache, 1, last, layers)

    def _run_both(self, step: BoundStep, tokens: NewTokens, layers: ArrayLayers) -> tuple[Array, Array, ArrayLayers]:
        """Return the step's logits, those of the prompt's last token, and the prompt's layers with the new tokens."""
        raise NotImplementedError

    def _run_growing(self, tokens: NewTokens, layers: ArrayLayers, keep: int) -> tuple[Array, ArrayLayers]:
        """Run prefill, which reads cached tensors without room to spare and returns larger ones."""
        return super()._run("prefill", tokens, layers, keep)  # type: ignore[safe-super]

    def _to_array(self, tensor: CacheTensor, value: Array) -> Array:
        return value

    def _from_array(self, tensor: CacheTensor, array: Array) -> Array:
        return array

    def layer_arrays(self, cache: Cache[Any]) -> list[tuple[Array, ...]]:
        # Copies, since buffers are written in place.
        pairs = zip(self.layout, cache.layers, strict=True)
        layers = [tuple(held(t, x, cache.length).copy() for t, x in zip(*pair, strict=True)) for pair in pairs]
        return super().layer_arrays(Cache(cache.mask, layers))

    def fork(self, cache: Cache[Any]) -> Cache[Any]:
        # Buffers are written in place.
        return Cache(cache.mask, [tuple(x.copy() for x in layer) for layer in cache.layers], cache.adapter_ids)

    @property
    def cuts_freely(self) -> bool:
        # Rows beyond the cache's length are not read.
        return all(tensor.sort == "rows" for layer in self.layout for tensor in layer)

    def _first_tokens(self, cache: Cache[Any], length: int) -> ArrayLayers:
        if self.cuts_freely:
            return cache.layers  # still bound: nothing is copied
        return [  # graphs read a ring up to its end, so rows that are cut off there must be removed
            tuple(first_tokens(t, x, length, cache.mask) if t.sort == "ring" else x for t, x in zip(*pair, strict=True))
            for pair in zip(self.layout, cache.layers, strict=True)
        ]

    def _held_layers(self, layers: ArrayLayers, past: int) -> ArrayLayers:
        """Return a cache's tensors without the room to spare in buffers."""
        return [
            tuple(np.ascontiguousarray(held(t, x, past)) for t, x in zip(layout, layer, strict=True))
            for layout, layer in zip(self.layout, layers, strict=True)
        ]

    def _run(self, stage: str, tokens: NewTokens, layers: ArrayLayers, keep: int) -> tuple[Array, ArrayLayers]:
        if stage == "prefill":
            return self._run_growing(tokens, self._held_layers(layers, tokens.past), keep)
        bound, step = self._bound_step(tokens, layers)
        past, mask = tokens.past, tokens.mask
        # In this step the graph counts all new rows as tokens; from the next step on, the mask says which are padding.
        waiting = np.flatnonzero(~mask[:, past:].any(axis=1))  # these rows wait: their rings and states must not change
        before = [(buffer, buffer[waiting]) for buffer, _ in step.replaced] if len(waiting) else []
        logits = self.run_bound(step)
        for buffer, kept in before:
            buffer[waiting] = kept
        bound.mask[:, past : mask.shape[1]] = mask[:, past:]
        return logits, bound.layers

    def _bound_step(self, tokens: NewTokens, layers: ArrayLayers) -> tuple[_BoundBuffers, BoundStep]:
        """Return the buffers, and the step that is bound to them with the new tokens in it."""
        input_ids, mask = tokens.input_ids, tokens.mask
        n, bound = input_ids.shape[1], self._bound
        past = tokens.past
        if bound is None or bound.layers is not layers or mask.shape[1] > bound.mask.shape[1]:
            bound = self._bound = None  # frees the old buffers first, since there may be no memory for both
            bound = self._bound = self._bind(layers, past, n, mask)
        if n not in bound.steps:
            bound.steps[n] = self.bind(layers, bound.mask, bound.length, bound.adapter_ids, n)
        step = bound.steps[n]
        step.input_ids[:] = input_ids
        step.positions[:] = tokens.positions
        bound.length[:] = past
        bound.adapter_ids[:] = 0 if tokens.adapter_ids is None else tokens.adapter_ids
        bound.mask[:, :past] = mask[:, :past]  # tokens that were taken back are padding now
        return bound, step

    def _bind(self, layers: ArrayLayers, past: int, new: int, mask: Array) -> _BoundBuffers:
        """Move a cache into buffers with room to spare, which steps read and write.

        ``layers`` is changed one layer at a time, so that at most one layer's old rows are in memory beside the new.
        """
        batch = mask.shape[0]
        room = -(-(past + max(past // _SPARE, new)) // _GRAIN) * _GRAIN
        for index, layout in enumerate(self.layout):
            layers[index] = tuple(_moved(t, x, past, room) for t, x in zip(layout, layers[index], strict=True))
        whole = np.zeros((batch, room), np.int64)
        whole[:, :past] = mask[:, :past]
        return _BoundBuffers(layers, whole, np.zeros((batch,), np.int64), np.zeros((batch,), np.int64), {})


def _moved(tensor: CacheTensor, rows: Array, past: int, room: int) -> Array:
    """Copy the ``past`` columns of a cached tensor into a new buffer of ``room`` columns (a ring: of its window)."""
    buffer = new_buffer(tensor, rows.shape[0], room, rows.dtype)
    held(tensor, buffer, past)[:] = held(tensor, rows, past)
    return buffer

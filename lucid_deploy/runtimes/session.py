"""The interface of all runtimes: a session runs prefill and decode steps, and adds the new tokens to a cache.

Shapes: B batch, N new tokens, P tokens in the cache, KV key/value heads, D head width.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import VERIFY
from lucid_deploy.artifact.adapters import BASE, StoredAdapter
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription, describe, drafts_unsupported_reason, layout_of
from lucid_deploy.runtimes.cache_operations import Array, Cache, CacheOperations, Tensor, empty_arrays
from lucid_deploy.runtimes.runtime import Capabilities

if TYPE_CHECKING:
    from lucid_deploy.runtimes.graph_sessions import StaticSession

__all__ = ["Array", "Cache", "Limits", "NewTokens", "Session", "Tensor", "empty_arrays"]

MOST = 16  # most new tokens of one row in one call of Session.decode_several
STEP_TOKENS = 32  # most tokens of all rows in a step that verifies drafts; beyond, time grows in proportion to tokens
_PREFILL_CHUNK = 1024  # tokens; on a CPU as fast as all tokens at once, which need several times the memory


@dataclass(frozen=True)
class NewTokens:
    """The new tokens of one call.

    Attributes:
        input_ids: Int64 ``(B, N)``.
        mask: Bool ``(B, P + N)``, False at padding.
        positions: Int64 ``(B, N)``; a row's first token that is not padding has position 0.
        adapter_ids: Int64 ``(B,)``; None for graphs without adapters.
    """

    input_ids: Array
    mask: Array
    positions: Array
    adapter_ids: Array | None = None

    @staticmethod
    def after(
        input_ids: Array, past: int = 0, mask: Array | None = None, adapter_ids: Array | None = None
    ) -> NewTokens:
        """Give tokens ``(B, N)`` positions after ``past`` (P) cached columns; mask ``(B, P + N)``, None: no padding."""
        batch, n = input_ids.shape
        full = np.ones((batch, past + n), dtype=bool) if mask is None else mask
        positions = np.maximum(np.cumsum(full, axis=1, dtype=np.int64) - 1, 0)[:, past:]
        return NewTokens(input_ids, full, positions, adapter_ids)

    @property
    def past(self) -> int:
        """Columns in the cache before these tokens, padding included."""
        return int(self.mask.shape[1] - self.input_ids.shape[1])

    def last_logits(self, logits: Array) -> Array:
        """Return the logits of each row's last token that is not padding; unchanged if ``logits`` are of one token."""
        n = self.input_ids.shape[1]
        if n == 1 or logits.shape[1] != n:
            return logits
        last = (self.mask[:, self.past :] * np.arange(n)).argmax(axis=1)  # (B,)
        return np.take_along_axis(logits, last[:, None, None], axis=1)

    def feed(self) -> dict[str, Array]:
        """Return the graphs' inputs for these tokens."""
        return {
            "input_ids": np.ascontiguousarray(self.input_ids),
            "attention_mask": self.mask.astype(np.int64),
            "position_ids": np.ascontiguousarray(self.positions),
            **({} if self.adapter_ids is None else {"adapter_ids": self.adapter_ids}),
        }


@dataclass(frozen=True)
class Limits:
    """The largest sizes that engines, or a provider's optimization profile, accept.

    Attributes:
        max_batch: Most rows of a batch.
        max_context: Most tokens of a row, cached and new ones together; the length of a static cache's buffers.
        prefill_chunk: Most new tokens of one prefill; longer prompts run in chunks.
    """

    max_batch: int
    max_context: int
    prefill_chunk: int


class Session(CacheOperations[Tensor]):
    """A model ready to run.

    Attributes:
        config: The model's configuration.
        dtype: Type of its arithmetic and unquantized weights, as numpy spells it (``bfloat16`` included).
        cache_dtype: Type that rows such as K and Y are cached in, such as ``int8``; usually ``dtype``.
        layers: Descriptions of its layers.
        layout: The tensors that each layer caches.
        runtime: Name of the runtime, such as ``onnxruntime``.
        provider: onnxruntime's execution provider, such as ``cpu``; None with other runtimes.
        kernels: With onnxruntime on the CPU, what computes our operators: ``library`` or the graph's ``functions``.
        capabilities: What the runtime can do with the options it was opened with.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` run; with dynamic RoPE they never do.
        limits: The largest sizes that can be run; None: no limits but the model's.
        rounded_inputs: Type that inputs of quantized layers are rounded to, ``int8`` or ``fp8``, so that sums in
            another order change results by as much as that rounding; None: inputs are not rounded.
        adapters: The adapters by name; their slots are the values of ``adapter_ids``. None: the model supports none.
    """

    def __init__(
        self,
        config: LucidConfig,
        dtype: str,
        runtime: str,
        allow_extrapolation: bool = False,
        capabilities: Capabilities | None = None,
        cache_dtype: str | None = None,
        layers: tuple[LayerDescription, ...] | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.cache_dtype = cache_dtype or dtype
        self.layers = describe(config, self.cache_dtype) if layers is None else layers
        self.layout = layout_of(self.layers)
        self.runtime = runtime
        self.provider: str | None = None
        self.kernels: str | None = None
        self.capabilities = Capabilities() if capabilities is None else capabilities
        self.allow_extrapolation = allow_extrapolation
        self.limits: Limits | None = None
        self.rounded_inputs: str | None = None
        self.adapters: dict[str, StoredAdapter] | None = None

    def adapter_id(self, name: str | None) -> int:
        """Return the value of ``adapter_ids`` for a name: ``base`` is the model without an adapter, None the default.

        Raises:
            LucidError: There is no such adapter.
        """
        if name is None:
            return self.default_adapter
        if name == BASE:
            return 0
        if self.adapters is None:
            raise LucidError(
                f"This model has no adapters, so there is no {name!r}. Export it with --adapter NAME=DIR, or with "
                "--max-adapters to add them later."
            )
        if name not in self.adapters:
            raise LucidError(f"There is no adapter {name!r}; there are {', '.join((BASE, *self.adapters))}.")
        return self.adapters[name].slot

    def close(self) -> None:
        """Release the session's resources; do not use it afterwards. Most sessions need no call."""

    def release_memory(self) -> None:
        """Return unused memory that is cached for later runs to the system; most runtimes do nothing."""

    @property
    def label(self) -> str:
        """The runtime's name for messages, with the provider or kernels that were chosen."""
        return self.runtime

    @property
    def rounds(self) -> bool:
        """Whether arithmetic, cache or layer inputs are rounded, so that results depend on how prompts are chunked.

        Arithmetic counts as rounded in half precision: another order of sums changes results by a thousandth or more.
        """
        is_half = self.dtype not in ("float32", "float64")
        return is_half or self.cache_dtype != self.dtype or self.rounded_inputs is not None

    @property
    def cuts_matter(self) -> bool:
        """Whether splitting a prompt into other chunks changes results by more than the rounding of float32."""
        return self.rounds

    @property
    def fallback_hint(self) -> str | None:
        """How to run the model without our kernels, as a clause; None if that is impossible or they are not used."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return what runs the model (runtime, kernels, type), to be written beside results."""
        return {
            "runtime": self.runtime,
            "provider": self.provider,
            "kernels": self.kernels,
            "dtype": self.dtype,
        }

    @property
    def in_place(self) -> StaticSession | None:
        """This session if it can decode in the caller's buffers, where each row has its own length; else None."""
        return None

    @property
    def prefill_chunk(self) -> int:
        """The recommended ``chunk`` for :meth:`prefill`, in tokens; generation uses it by default."""
        return _PREFILL_CHUNK if self.limits is None else self.limits.prefill_chunk

    def prefill(
        self,
        input_ids: Array,
        cache: Cache[Tensor],
        mask: Array | None = None,
        chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """Run new tokens after those in the cache, and add them to it.

        Args:
            input_ids: Int64 ``(B, N)``, N ≥ 1.
            cache: Changed in place. If an error is raised, it contains the chunks that were finished before.
            mask: Bool ``(B, N)``, False at padding; None: no padding.
            chunk: Run at most this many tokens at once, which bounds memory; None: as many as :attr:`limits` allow.
            progress: Called after each chunk with (tokens done, total tokens).

        Returns:
            Logits of each row's last token that is not padding, float ``(B, 1, vocab)``.
        """
        input_ids = self._checked(input_ids, cache)
        n = input_ids.shape[1]
        mask = _checked_mask(mask, input_ids)
        size = n if chunk is None else operator.index(chunk)
        if size < 1:
            raise LucidError(f"A prefill chunk must hold at least one token, not {size}.")
        if self.limits is not None:
            size = min(size, self.limits.prefill_chunk)
        logits: Array | None = None
        for start in range(0, n, size):
            part = slice(start, start + size)
            new = self._advance("prefill", input_ids[:, part], mask[:, part], cache, 1)
            has_token = mask[:, part].any(axis=1).reshape(-1, 1, 1)
            logits = new if logits is None else np.asarray(np.where(has_token, new, logits))
            if progress is not None:
                progress(min(part.stop, n), n)
        assert logits is not None
        return logits

    def decode(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """Run one new token per row, int64 ``(B, 1)``, and add it to the cache; return logits, float ``(B, 1, vocab)``.

        Where ``mask``, bool ``(B, 1)``, is False, the row gets no token and its new cache column is padding.
        """
        input_ids = self._checked(input_ids, cache)
        if input_ids.shape[1] != 1:
            raise LucidError(f"Decoding takes one token per row, not {input_ids.shape[1]}; use prefill for several.")
        return self._advance("decode", input_ids, _checked_mask(mask, input_ids), cache, 1)

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        """Why :meth:`decode_several` is not supported, as a clause without a full stop; None if it is."""
        return drafts_unsupported_reason(self.layers) or f"runtime {self.runtime} decodes one new token at a time"

    def prepare_several(self) -> None:
        """Load what :meth:`decode_several` needs, before its first call; raise a LucidError if it is not supported."""
        reason = self.multi_token_unsupported_reason
        if reason is not None:
            raise LucidError(f"Several tokens cannot be decoded at once: {reason}.")

    def decode_several(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """Run up to :data:`MOST` new tokens of each row, and return the logits of all, to verify drafts.

        Later tokens do not change a token's logits, so the logits of rejected drafts are simply not used;
        :func:`~lucid_deploy.runtimes.cache_rows.take_back` drops such drafts. A row's padding comes after its tokens.

        Returns:
            Logits, float ``(B, N, vocab)``; those at padding mean nothing.
        """
        self.prepare_several()
        input_ids = self._checked(input_ids, cache)
        mask = _checked_mask(mask, input_ids)
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise LucidError("The mask has padding before a token; here padding may only follow a row's tokens.")
        if input_ids.shape[1] > MOST:
            raise LucidError(
                f"Up to {MOST} tokens are decoded at once, not {input_ids.shape[1]}; use prefill for more."
            )
        return self._advance(VERIFY, input_ids, mask, cache, input_ids.shape[1])

    @property
    def gives_all_logits(self) -> bool:
        """Whether prefill returns all tokens' logits; otherwise :meth:`prefill_all` decodes a few tokens at a time."""
        return False

    def prefill_all(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """As :meth:`prefill`, but return all tokens' logits, float ``(B, N, vocab)``; those at padding mean nothing."""
        input_ids = self._checked(input_ids, cache)
        mask = _checked_mask(mask, input_ids)
        n = input_ids.shape[1]
        if self.gives_all_logits:
            return self._advance("prefill", input_ids, mask, cache, n)
        several = self.multi_token_unsupported_reason is None and mask.all()
        size, run = (MOST, self.decode_several) if several else (1, self.decode)
        parts = [slice(start, start + size) for start in range(0, n, size)]
        return np.concatenate([run(input_ids[:, part], cache, mask[:, part]) for part in parts], axis=1)

    def _advance(self, stage: str, input_ids: Array, mask: Array, cache: Cache[Tensor], keep: int) -> Array:
        """Run a stage on new tokens and add them to the cache; return the logits of each row's last ``keep`` tokens."""
        tokens = self._new_tokens(input_ids, mask, cache)
        return self._add(stage, tokens, cache, keep, *self._run(stage, tokens, cache.layers, keep))

    def _new_tokens(self, input_ids: Array, mask: Array, cache: Cache[Tensor]) -> NewTokens:
        full = np.concatenate([cache.mask, mask], axis=1)
        return NewTokens.after(input_ids, cache.length, full, self._checked_adapters(cache))

    def _add(self, stage: str, tokens: NewTokens, cache: Cache[Tensor], keep: int, logits: Array, layers: Any) -> Array:
        """Check a run's logits and layers, put layers and mask into the cache, and return the last ``keep`` logits."""
        if keep == 1 and logits.ndim == 3:
            logits = tokens.last_logits(logits)
        expected = (len(tokens.input_ids), keep, self.config.vocab_size)
        if logits.shape != expected or len(layers) != len(self.layers):
            raise CheckFailed(
                f"{stage} of runtime {self.runtime} gave logits of shape {logits.shape} and {len(layers)} layers, not "
                f"{expected} and {len(self.layers)}."
            )
        cache.mask = tokens.mask
        cache.layers = layers if isinstance(layers, list) else list(layers)  # same list: it identifies bound buffers
        return logits

    def _checked_adapters(self, cache: Cache[Tensor]) -> Array | None:
        """Check that the rows' adapters exist, and return their ids for the graphs; None if the model has none."""
        slots = {BASE: 0} | {name: each.slot for name, each in (self.adapters or {}).items()}
        if not {*cache.adapter_ids.tolist()} <= {*slots.values()}:
            known = ", ".join(f"{slot} for {name}" for name, slot in slots.items())
            raise LucidError(f"adapter_ids are {cache.adapter_ids.tolist()}; the model has {known}.")
        return None if self.adapters is None else cache.adapter_ids

    def _checked(self, input_ids: Array, cache: Cache[Tensor]) -> Array:
        """Return token ids as int64 after checking their type, shape, range, and the length of the context."""
        input_ids = np.asarray(input_ids)
        if input_ids.ndim != 2 or input_ids.shape[0] != cache.batch or not np.issubdtype(input_ids.dtype, np.integer):
            raise LucidError(
                f"Token ids must be whole numbers of shape (batch {cache.batch}, tokens), not {input_ids.dtype} "
                f"{input_ids.shape}."
            )
        if input_ids.size == 0:
            what = "the prompt is empty" if cache.batch else "the batch has no rows"
            raise LucidError(f"There are no tokens to run: {what}.")
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise LucidError(
                f"Token id {wrong} is outside the vocabulary (0 to {self.config.vocab_size - 1}); the tokenizer may be "
                "another model's."
            )
        self.check_length(cache.length + input_ids.shape[1])
        self._check_limits(cache.batch, cache.length + input_ids.shape[1])
        return input_ids.astype(np.int64, copy=False)

    @property
    def context_limit(self) -> int | None:
        """Most tokens of a context; None if any length is permitted."""
        own = [] if self._extrapolates else [self.config.max_position_embeddings]
        return min([*own, *([] if self.limits is None else [self.limits.max_context])], default=None)

    @property
    def _extrapolates(self) -> bool:
        return self.allow_extrapolation and self.config.rope_scaling.rope_type != "dynamic"

    @property
    def batch_limit(self) -> int | None:
        """Most rows of a batch; None if any number is permitted."""
        return None if self.limits is None else self.limits.max_batch

    def check_length(self, tokens: int) -> None:
        """Raise a LucidError if a context of ``tokens`` is longer than the model permits, unless it may extrapolate."""
        limit = self.config.max_position_embeddings
        if tokens > limit and not self._extrapolates:
            remedy = "Shorten it, or pass --allow-extrapolation."
            if self.allow_extrapolation:
                remedy = "Shorten it: with rope_scaling 'dynamic' the angles of all keys change beyond that length."
            raise LucidError(
                f"The context would be {tokens} tokens, the model was made for {limit} (max_position_embeddings). "
                f"{remedy}"
            )

    def _check_limits(self, batch: int, tokens: int) -> None:
        """Check that a batch fits :attr:`limits`."""
        if self.limits is None:
            return
        for found, most, option, what in (
            (batch, self.limits.max_batch, "--max-batch", "rows"),
            (tokens, self.limits.max_context, "--max-context", "tokens"),
        ):
            if found > most:
                raise LucidError(
                    f"{self.label} runs up to {most} {what} here, not {found}. {self._limit_remedy(option, found)}"
                )

    def _limit_remedy(self, option: str, wanted: int) -> str:
        """Return advice for running ``wanted`` rows or tokens; ``option`` of ``lucid-deploy build`` sets this limit."""
        return "Choose another --runtime."

    @abstractmethod
    def _run(
        self, stage: str, tokens: NewTokens, layers: list[tuple[Tensor, ...]], keep: int
    ) -> tuple[Array, list[tuple[Tensor, ...]]]:
        """Run new tokens after those in the cache.

        Args:
            stage: ``prefill``, ``decode`` (N = 1), or ``verify``, where ``multi_token_unsupported_reason`` is None.
            tokens: The new tokens.
            layers: The cache, as :attr:`Cache.layers`.
            keep: 1, for the logits of each row's last token that is not padding, or N, for all.

        Returns:
            Logits, float ``(B, keep, vocab)`` or, for any keep, ``(B, N, vocab)``; and the layers with the new tokens.
        """


def _checked_mask(mask: Array | None, input_ids: Array) -> Array:
    """Return the mask of new tokens as bool ``(B, N)``, False at padding; ``mask`` None means no padding."""
    if mask is None:
        return np.ones(input_ids.shape, dtype=bool)
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != input_ids.shape:
        raise LucidError(f"The mask has shape {mask.shape}, but the token ids have shape {input_ids.shape}.")
    return mask

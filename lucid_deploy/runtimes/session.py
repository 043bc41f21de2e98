"""One interface for every runtime: a session prefills and decodes, a cache holds K, Y and what is padding.

Shapes: B batch, N new tokens, T tokens so far, KV key/value heads, D head width.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription, describe, layout_of
from lucid_deploy.runtimes.cache_operations import Array, Cache, CacheOperations, Tensor, empty_arrays
from lucid_deploy.runtimes.in_place import InPlaceDecoding
from lucid_deploy.runtimes.run_arguments import checked_chunk, checked_mask
from lucid_deploy.runtimes.run_result import checked_result
from lucid_deploy.runtimes.runtime import Capabilities
from lucid_deploy.runtimes.several import MOST, layers_obstacle

__all__ = ["Array", "Cache", "Session", "Tensor", "empty_arrays"]

_PREFILL_CHUNK = 1024  # no slower on a CPU than all tokens at once, which take a multiple of its memory


class Session(CacheOperations[Tensor]):
    """A model ready to run.

    Attributes:
        config: The model's configuration.
        dtype: Type of its weights and arithmetic, as numpy spells it (``bfloat16`` included).
        cache_dtype: Type that rows such as K and Y are cached in, such as ``int8``; mostly the same.
        layers: What its layers are.
        layout: What they cache.
        runtime: Name of what runs it, such as ``onnxruntime``.
        provider: onnxruntime's execution provider, such as ``cpu``; None with other runtimes.
        kernels: With onnxruntime on the CPU, what computes the operators of ``ai.lucid``: ``library`` or the graph's
            ``functions``; None elsewhere.
        capabilities: What the runtime can do, as it was opened.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
        identity: Which model it is, as :attr:`Artifact.identity`; None for a model that comes from no artifact.
        rounded_inputs: Type that the inputs of quantized products are rounded to as it runs, ``int8`` or ``fp8``; None:
            they are not. Sums in another order then change results by as much as that rounding.
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
        self.identity: str | None = None
        self.rounded_inputs: str | None = None

    def close(self) -> None:
        """Give back what the session holds; it cannot be used any more. Most have nothing that waits for this."""

    def release_memory(self) -> None:
        """Give memory back that is only kept for later runs; they take as much anew. Most sessions keep none."""

    @property
    def label(self) -> str:
        """The runtime, for people, with what was chosen beside it."""
        return self.runtime

    @property
    def rounds(self) -> bool:
        """Whether arithmetic, cache or inputs of products are rounded, so that results depend on where prompts are cut.

        Arithmetic counts as rounded in half precision: another order of sums changes its results by a thousandth.
        """
        is_half = self.dtype not in ("float32", "float64")
        return is_half or self.cache_dtype != self.dtype or self.rounded_inputs is not None

    @property
    def plainer(self) -> str | None:
        """How to run the same with less code of ours, as the end of a sentence; None if that is not to be had."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return what runs the model, to write beside results."""
        return {
            "runtime": self.runtime,
            "provider": self.provider,
            "kernels": self.kernels,
            "dtype": self.dtype,
        }

    @property
    def in_place(self) -> InPlaceDecoding | None:
        """Decoding in buffers of the caller's, where each row has a length of its own; None if it is not to be had."""
        return None

    @property
    def prefill_chunk(self) -> int:
        """Tokens of a prompt that run at once where nobody says how many."""
        return _PREFILL_CHUNK

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
            cache: Changed in place. If an error is raised between chunks, it holds the chunks that were done.
            mask: Bool ``(B, N)``, False at padding; None: no padding.
            chunk: Run at most this many tokens at once, which bounds memory; None: all at once.
            progress: Called after each chunk with (tokens done, tokens in all).

        Returns:
            Logits of each row's last token, float ``(B, 1, vocab)``. In chunked prefill of right-padded rows, those of
            the last chunk that holds a token of the row.

        Raises:
            LucidError: Token ids outside the vocabulary, no tokens, too long a context, or shapes that do not fit.
        """
        input_ids = self._checked(input_ids, cache)
        n = input_ids.shape[1]
        mask = checked_mask(mask, input_ids)
        chunk = checked_chunk(chunk)
        logits: Array | None = None
        for start in range(0, n, chunk or n):
            part = slice(start, start + (chunk or n))
            new = self._advance(input_ids[:, part], mask[:, part], cache, self._run_prefill, 1)
            has_token = mask[:, part].any(axis=1).reshape(-1, 1, 1)
            logits = new if logits is None else np.asarray(np.where(has_token, new, logits))
            if progress is not None:
                progress(min(part.stop, n), n)
        assert logits is not None
        return logits

    def decode(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """Run one new token per row after those in the cache, and add it to it.

        Args:
            input_ids: Int64 ``(B, 1)``.
            cache: Changed in place.
            mask: Bool ``(B, 1)``, False for rows that only wait for others; None: all are tokens.

        Returns:
            Logits, float ``(B, 1, vocab)``.

        Raises:
            LucidError: As :meth:`prefill`, or more than one token per row.
        """
        input_ids = self._checked(input_ids, cache)
        if input_ids.shape[1] != 1:
            raise LucidError(f"Decoding takes one token per row, not {input_ids.shape[1]}; use prefill for several.")
        return self._advance(input_ids, checked_mask(mask, input_ids), cache, self._run_decode, 1)

    @property
    def several_obstacle(self) -> str | None:
        """Why :meth:`decode_several` is not to be had, as a sentence without an end; None if it is."""
        return layers_obstacle(self.layers) or f"runtime {self.runtime} decodes one new token at a time"

    def prepare_several(self) -> None:
        """Load what :meth:`decode_several` needs; the first call of it does so otherwise.

        Raises:
            LucidError: The reason of :attr:`several_obstacle`.
        """
        obstacle = self.several_obstacle
        if obstacle is not None:
            raise LucidError(f"Several tokens cannot be decoded at once: {obstacle}.")

    def decode_several(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """Run a few new tokens after those in the cache, and add them to it: the step that verifies drafts.

        What comes after a token does not change its logits, so those of drafts that turn out wrong are simply not used;
        :func:`~lucid_deploy.runtimes.take_back.take_back` drops the tokens.

        Args:
            input_ids: Int64 ``(B, N)``, N at most :data:`~lucid_deploy.runtimes.several.MOST`.
            cache: Changed in place.
            mask: Bool ``(B, N)``, False at padding, which comes behind a row's tokens; None: no padding.

        Returns:
            Logits of all of them, float ``(B, N, vocab)``; those at padding mean nothing.

        Raises:
            LucidError: As :meth:`prefill`, too many tokens, padding before a token, or the reason of
                :attr:`several_obstacle`.
        """
        self.prepare_several()
        input_ids = self._checked(input_ids, cache)
        mask = checked_mask(mask, input_ids)
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise LucidError("The mask has padding before a token; here it may only come behind a row's tokens.")
        if input_ids.shape[1] > MOST:
            raise LucidError(
                f"Up to {MOST} tokens are decoded at once, not {input_ids.shape[1]}; use prefill for more."
            )
        return self._advance(input_ids, mask, cache, self._run_several, input_ids.shape[1])

    @property
    def gives_last_logits(self) -> bool:
        """Whether :meth:`prefill_last` is to be had."""
        return False

    def prefill_last(
        self,
        input_ids: Array,
        cache: Cache[Tensor],
        keep: int,
        chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """Run new tokens as :meth:`prefill` does, for the logits of the last few: a prompt with drafts behind it.

        Args:
            input_ids: Int64 ``(1, N)``: one row, without padding.
            cache: As :meth:`prefill` takes it.
            keep: How many of the N tokens the logits are of: the prompt's last one and the drafts behind it.
            chunk: As :meth:`prefill` takes it, of the prompt's tokens; drafts run with the last of them.
            progress: As :meth:`prefill` takes it, of the prompt's tokens.

        Returns:
            Logits of these tokens, float ``(1, keep, vocab)``.

        Raises:
            LucidError: As :meth:`prefill`, several rows, more tokens to keep than there are, or
                :attr:`gives_last_logits` is false.
        """
        if not self.gives_last_logits:
            raise LucidError(f"Runtime {self.runtime} gives the logits of a prompt's last token alone.")
        input_ids, chunk = self._checked(input_ids, cache), checked_chunk(chunk)
        rows, n = input_ids.shape
        if rows != 1 or not 1 <= keep <= n:
            raise LucidError(
                f"The logits of the last {keep} tokens are given of one row that has them, not {rows} of {n}."
            )
        prompt = n - keep + 1
        start = (prompt - 1) // chunk * chunk if chunk else 0
        if start:
            told = None if progress is None else (lambda done, _: progress(done, prompt))
            self.prefill(input_ids[:, :start], cache, chunk=chunk, progress=told)
        rest = input_ids[:, start:]
        run = functools.partial(self._run_prefill_last, keep=keep)
        logits = self._advance(rest, np.ones(rest.shape, dtype=bool), cache, run, keep)
        if progress is not None:
            progress(prompt, prompt)
        return logits

    @property
    def gives_all_logits(self) -> bool:
        """Whether one run gives the logits of every token; otherwise :meth:`prefill_all` decodes token by token."""
        return False

    def prefill_all(self, input_ids: Array, cache: Cache[Tensor], mask: Array | None = None) -> Array:
        """Run new tokens after those in the cache, and add them to it, for the logits of all of them.

        Args:
            input_ids: Int64 ``(B, N)``, N ≥ 1.
            cache: Changed in place.
            mask: Bool ``(B, N)``, False at padding; None: no padding.

        Returns:
            Logits, float ``(B, N, vocab)``; those at padding mean nothing.

        Raises:
            LucidError: As :meth:`prefill`.
        """
        input_ids = self._checked(input_ids, cache)
        mask = checked_mask(mask, input_ids)
        if self.gives_all_logits:
            return self._advance(input_ids, mask, cache, self._run_prefill_all, input_ids.shape[1])
        columns = (slice(i, i + 1) for i in range(input_ids.shape[1]))
        return np.concatenate([self.decode(input_ids[:, i], cache, mask[:, i]) for i in columns], axis=1)

    def _advance(
        self,
        input_ids: Array,
        mask: Array,
        cache: Cache[Tensor],
        run: Callable[[Array, Array, Array, Any], tuple[Array, Any]],
        kept: int,
    ) -> Array:
        """Run new tokens and add them to the cache; ``run`` gives the logits of the last ``kept`` of them."""
        full = np.concatenate([cache.mask, mask], axis=1)
        positions = np.maximum(np.cumsum(full, axis=1, dtype=np.int64) - 1, 0)[:, cache.length :]
        found, expected = run(input_ids, full, positions, cache.layers), (len(input_ids), kept, self.config.vocab_size)
        name = run.func.__name__ if isinstance(run, functools.partial) else run.__name__
        logits, layers = checked_result(found, expected, len(self.layers), f"{name} of runtime {self.runtime}")
        cache.mask, cache.layers = full, layers
        return logits

    def _checked(self, input_ids: Array, cache: Cache[Tensor]) -> Array:
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
        return input_ids.astype(np.int64, copy=False)

    @property
    def context_limit(self) -> int | None:
        """Most tokens of a context; None with ``allow_extrapolation``, if the model's angles stay the same beyond."""
        return None if self._extrapolates else self.config.max_position_embeddings

    @property
    def _extrapolates(self) -> bool:
        return self.allow_extrapolation and self.config.rope_scaling.rope_type != "dynamic"

    @property
    def batch_limit(self) -> int | None:
        """Most rows of a batch; None: any number."""
        return None

    def check_length(self, tokens: int) -> None:
        """Check that a context of so many tokens is allowed.

        Raises:
            LucidError: It is longer than the model was made for, and extrapolation is not permitted.
        """
        limit = self.config.max_position_embeddings
        if tokens > limit and not self._extrapolates:
            remedy = "Shorten it, or pass --allow-extrapolation."
            if self.allow_extrapolation:
                remedy = "Shorten it: with rope_scaling 'dynamic' the angles of all keys would change beyond."
            raise LucidError(
                f"The context would be {tokens} tokens, the model was made for {limit} (max_position_embeddings). "
                f"{remedy}"
            )

    def _run_prefill_all(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, ...]]
    ) -> tuple[Array, list[tuple[Tensor, ...]]]:
        """As :meth:`_run_prefill`, with the logits of all tokens; to be there where ``gives_all_logits`` is true."""
        raise NotImplementedError

    def _run_prefill_last(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, ...]], keep: int
    ) -> tuple[Array, list[tuple[Tensor, ...]]]:
        """As :meth:`_run_prefill`, with the logits of the last tokens of the one row; see ``gives_last_logits``."""
        raise NotImplementedError

    def _run_several(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, ...]]
    ) -> tuple[Array, list[tuple[Tensor, ...]]]:
        """As :meth:`_run_prefill_all`; to be there where ``several_obstacle`` can be None."""
        raise NotImplementedError

    @abstractmethod
    def _run_prefill(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, ...]]
    ) -> tuple[Array, list[tuple[Tensor, ...]]]: ...

    @abstractmethod
    def _run_decode(
        self, input_ids: Array, mask: Array, positions: Array, layers: list[tuple[Tensor, ...]]
    ) -> tuple[Array, list[tuple[Tensor, ...]]]: ...

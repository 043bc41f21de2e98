"""Run a model and record the residual stream, V, and the new rows of K and Y of every layer.

If residuals are given, every layer reads the one given for it instead of its predecessor's output, which separates a
layer's own error from those of the layers before it.

Shapes: B batch, P cached tokens, N new tokens, C hidden, KV key/value heads, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription, describe
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.registry import built_in_runtimes, find_runtime
from lucid_deploy.runtimes.session import Array, NewTokens, Session, empty_arrays


def open_layers(session: Session[Any], artifact: Artifact | None) -> Layers:
    """Return the layers of a session's model, to run them one by one; raise a LucidError if the runtime cannot."""
    if session.capabilities.reads_layers:
        return find_runtime(session.runtime).open_layers(session, artifact)
    able = [item.name for item in built_in_runtimes() if item.capabilities(RuntimeOptions()).reads_layers]
    raise LucidError(
        f"{session.label} runs a graph as one piece, so no layer can be run by itself to find where an error "
        f"starts. Verify the artifact with --runtime {' or '.join(able)} for that."
    )


@dataclass(frozen=True)
class LayerStates:
    """What one call computed, in float32 for half types, else in the model's own type."""

    # (B, N, C) after the embedding and after each layer: layer i turns residuals[i], or what it was given instead, into
    # residuals[i + 1].
    residuals: list[Array]
    # Per layer, by name: the new tokens' rows, (B, heads, N, width); of rings and states all that they hold afterwards.
    cached: list[dict[str, Array]]
    given: list[Array | None]  # per layer V of the new tokens, (B, KV, N, D), before the solve; None: it solves nothing
    logits: Array  # of each row's last token, (B, 1, vocab)


Past = list[tuple[Array, ...]]  # per layer the tensors of its layout, scales applied, such as K and Y (B, KV, P, D)


class Layers(ABC):
    """A model whose layers can be run on given inputs. Its attributes mean the same as those of :class:`Session`."""

    def __init__(
        self, config: LucidConfig, dtype: str, cache_dtype: str, layers: tuple[LayerDescription, ...] | None = None
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.cache_dtype = cache_dtype
        self.layers = describe(config, cache_dtype) if layers is None else layers

    def empty_past(self, batch: int = 1) -> Past:
        """Return the cache before the first token."""
        return empty_arrays(self.layers, batch)

    @abstractmethod
    def run(
        self, tokens: NewTokens, past: Past, residuals: list[Array] | None = None, decode: bool = False
    ) -> LayerStates:
        """Run new tokens after those in the cache, and record what each layer computes.

        Args:
            tokens: The new tokens.
            past: The cached tensors, of any float type; they are rounded as the cache stores them.
            residuals: For every layer, and last for the final norm, the residual stream to read, each ``(B, N, C)``; it
                is rounded to the model's type. None: each layer reads its predecessor's output.
            decode: Use the decode graph, or the model's path for one token; N = 1.
        """


class ScoringLayers(Layers):
    """Layers that can also return the logits of all tokens of a prefill."""

    @abstractmethod
    def logits(self, input_ids: Array) -> Iterator[Array]:
        """Yield the logits of all tokens of one sequence ``(N,)`` in pieces ``(n, vocab)``, from one prefill."""

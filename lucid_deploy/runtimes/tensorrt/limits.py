"""The size limits that engines are built for, and their optimization profiles."""

from __future__ import annotations

import math

from lucid_deploy.artifact import VERIFY, Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import MOST, Limits

DEFAULT_BATCH = 4  # rows; `lucid-deploy verify` runs two at once
DEFAULT_CHUNK = 2048  # tokens
DRAFTED = 8  # tokens per row for which the engine that verifies drafts is optimized
_MOST_ELEMENTS = 2**31 - 1  # elements of one tensor in TensorRT

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, optimized and largest shape of an input


def choose_limits(
    artifact: Artifact, max_batch: int | None = None, max_context: int | None = None, prefill_chunk: int | None = None
) -> Limits:
    """Return the limits, with defaults for None; raise a LucidError if engines cannot be built for them."""
    most = artifact.config.max_position_embeddings
    batch = DEFAULT_BATCH if max_batch is None else max_batch
    context = most if max_context is None else max_context
    if batch < 1:
        raise LucidError(f"--max-batch must be at least 1, not {batch}.")
    if context < 2:
        raise LucidError(f"--max-context must be at least 2, a token and the next one, not {context}.")
    if context > most:
        raise LucidError(
            f"--max-context {context} is more than the model was made for: {most} (max_position_embeddings)."
        )
    chunk = min(DEFAULT_CHUNK, context) if prefill_chunk is None else prefill_chunk
    if chunk < 1:
        raise LucidError(f"--prefill-chunk must be at least 1, not {chunk}.")
    if chunk > context:
        raise LucidError(
            f"--prefill-chunk {chunk} and --max-context {context} contradict each other: a chunk cannot be longer than "
            "the whole context."
        )
    limits = Limits(batch, context, chunk)
    _check_sizes(artifact, limits)
    return limits


def _check_sizes(artifact: Artifact, limits: Limits) -> None:
    config, batch, context, chunk = artifact.config, limits.max_batch, limits.max_context, limits.prefill_chunk
    rows = chunk if artifact.manifest.logits == "all" else 1
    tensors = {
        "a layer's key cache": (batch, config.num_key_value_heads, context + chunk, config.head_dim),
        "the attention mask of a chunk": (batch, 1, chunk, context + chunk),
        "the logits": (batch, rows, config.vocab_size),
        "a chunk's activations": (batch, chunk, max(config.intermediate_size, config.hidden_size)),
    }
    for name, shape in tensors.items():
        if math.prod(shape) > _MOST_ELEMENTS:
            raise LucidError(
                f"With --max-batch {batch}, --max-context {context} and --prefill-chunk {chunk}, {name} would be "
                f"{' × '.join(map(str, shape))} elements; TensorRT supports at most 2³¹ − 1. Lower one of the options."
            )


def axis_ranges(stage: str, limits: Limits) -> dict[str, tuple[int, int, int]]:
    """Return least, optimized and largest size of every dynamic axis of a stage, by its name in the graph.

    An axis that is a sum, such as past + new, gets the sum of the sizes; otherwise the shapes of a profile would not
    fit together. So prefill's largest mask is longer than the context; the session itself enforces the context.
    """
    batch, context, chunk = limits.max_batch, limits.max_context, limits.prefill_chunk
    past = (0, min(context - chunk, context // 2) if stage == "prefill" else context // 2, context - 1)
    drafted = (1, min(DRAFTED, context), min(MOST, context))
    sequence = drafted if stage == VERIFY else (1, chunk, chunk)
    return {
        "batch": (1, batch, batch),
        "sequence": sequence,
        "past_sequence": past,
        "past_sequence + sequence": (1, past[1] + sequence[1], past[2] + sequence[2]),
        "past_sequence + 1": (1, past[1] + 1, past[2] + 1),
        "max_context": (context, context, context),
    }


def profile_shapes(artifact: Artifact, stage: str, limits: Limits) -> dict[str, Range]:
    """Return the optimization profile of a stage: for every input its least, optimized and largest shape."""
    ranges = axis_ranges(stage, limits)

    def shape(axes: tuple[int | str, ...], which: int) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else ranges[axis][which] for axis in axes)

    return {
        info.name: (shape(info.shape, 0), shape(info.shape, 1), shape(info.shape, 2))
        for info in artifact.manifest.graphs[stage].inputs
    }

"""Recorded inputs, and golden outputs that the PyTorch model computes from them in float64.

The tokens are few distinct ones and repeat, so that keys resemble each other; the last row begins with padding. There
are three cases: prefill without a past, prefill after those tokens, decode after both. Each is a single call, because
``polygraphy debug reduce`` replaces what it cuts off with tensors of the first call. Every cache is rounded to the
graph's type before the next call, so that the golden outputs belong to the inputs as recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.limits import Limits

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.lucid import CausalModel

CASES = {"prefill": "prefill", "prefill_past": "prefill", "decode": "decode"}  # by name: the stage
RUNNER = "PyTorch in float64"  # as Polygraphy names it in its comparisons
FACTOR = 8  # tolerance / error of the plain PyTorch model in the artifact's type
_CHUNK, _STEP, _PADDING, _KINDS = 24, 7, 3, 5  # tokens of the first and second prefill, of padding; most distinct ids
_HALF_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # half a unit in the last place of 1


@dataclass(frozen=True)
class Recorded:
    """One recorded call of a graph."""

    inputs: dict[str, torch.Tensor]  # input name to tensor, in the graph's types
    outputs: dict[str, torch.Tensor]  # output name to tensor, in the graph's types
    # By output: the absolute error that is allowed, FACTOR times the one that the plain PyTorch model makes in the
    # artifact's type, or FACTOR times half a unit in the last place of the largest value if that is more.
    tolerances: dict[str, float]


def record(artifact: Artifact, limits: Limits) -> dict[str, Recorded]:
    """Run each case's call in PyTorch; return the recordings by case. LucidError: the limits leave no room for them."""
    import torch

    from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model

    exact, plain = (load_artifact_model(artifact, dtype=dtype) for dtype in ("float64", None))
    found: dict[str, Recorded] = {}
    past: list[torch.Tensor] | None = None
    for case, ids, mask in _calls(artifact, limits):
        stage = CASES[case]
        stored = _empty(artifact, len(ids)) if past is None else past
        feed = _feed(artifact, stage, ids, mask, stored)
        golden, rough = _run(artifact, stage, exact, feed), _run(artifact, stage, plain, feed)
        types = {info.name: getattr(torch, info.dtype) for info in artifact.manifest.graphs[stage].outputs}
        outputs = {name: value.to(types[name]) for name, value in golden.items()}
        unit = _HALF_UNIT[artifact.manifest.dtype]
        found[case] = Recorded(
            feed,
            outputs,
            {
                name: FACTOR * max(float((rough[name].double() - x).abs().max()), unit * float(x.abs().max()))
                for name, x in golden.items()
            },
        )
        past = [value for name, value in outputs.items() if name.startswith("present.")]
    return found


def _calls(artifact: Artifact, limits: Limits) -> Iterator[tuple[str, Any, Any]]:
    """Yield case, new token ids ``(B, N)`` and mask ``(B, P + N)`` of each call."""
    first = min(_CHUNK, limits.prefill_chunk, limits.max_context - 2)
    if first < 1:
        raise LucidError(
            f"With --max-context {limits.max_context} there is no room for recorded inputs: a prompt, a token after "
            "it, and a decoded one. Take 3 or more."
        )
    second = min(_STEP, limits.prefill_chunk, limits.max_context - first - 1)
    rows, total = min(2, limits.max_batch), first + second + 1
    rng = np.random.default_rng(0)
    few = rng.integers(0, artifact.config.vocab_size, _KINDS)
    ids = few[rng.integers(0, _KINDS, (rows, total))]
    ids[:, total // 2 :] = ids[:, : total - total // 2]  # a text that repeats itself
    mask = np.ones((rows, total), np.int64)
    mask[-1, : min(_PADDING, first - 1)] = 0
    start = 0
    for case, new in zip(CASES, (first, second, 1), strict=True):
        yield case, ids[:, start : start + new], mask[:, : start + new]
        start += new


def _empty(artifact: Artifact, rows: int) -> list[torch.Tensor]:
    import torch

    tensors = [tensor for layer in artifact.manifest.layers for tensor in layer.cache]
    return [torch.zeros(each.batch_shape(rows, 0), dtype=getattr(torch, each.dtype)) for each in tensors]


def _feed(artifact: Artifact, stage: str, ids: Any, mask: Any, past: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    tokens = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    names = [info.name for info in artifact.manifest.graphs[stage].inputs]
    cached = iter(past)
    return {
        name: torch.from_numpy(np.ascontiguousarray(tokens[name], np.int64)) if name in tokens else next(cached)
        for name in names
    }


def _run(artifact: Artifact, stage: str, model: CausalModel, feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    exact = model.embedding.dtype == torch.float64
    cached = iter([value for name, value in feed.items() if name.startswith("past_key_values.")])
    past = [
        tuple(next(cached).double() if exact else next(cached) for _ in layer.cache)
        for layer in artifact.manifest.layers
    ]
    with torch.inference_mode():
        logits, present = model(
            feed["input_ids"],
            past,
            feed["attention_mask"],
            feed["position_ids"],
            decode=stage == "decode",
            last_only=artifact.manifest.logits == "last",
        )
    values = [logits, *(tensor for layer in present for tensor in layer)]
    return {info.name: value for info, value in zip(artifact.manifest.graphs[stage].outputs, values, strict=True)}

"""Ways to solve LUCID's system, side by side by length: error, time, and what the model still says.

Keys and values are the model's own on a text; the error of Y is against float64, the largest over layers and heads.
What the model says is compared with float64 too: the share of positions whose best next token is the same. Where the
tokenizer can write texts with needles, the text is one of them and questions are asked as well.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bench.solvers import DTYPES, SOLVERS, entries, relative_error, solve
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation import Task, evaluate, needles_task
from lucid_deploy.model.attention.lucid import LucidAttention
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind, layer_kind, register_layer_kind
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.table import TRAINING
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from lucid_deploy.runtimes.torch.session import TorchSession

LUCID, SOLVER = "lucid", "lucid_solver"
LONGEST = 4096  # tokens: the matrices are whole, 128 MiB a head in float64 there
Row = dict[str, Any]


@torch.inference_mode()
def compare_solvers(
    artifact: Artifact,
    lengths: Sequence[int],
    questions: int,
    rounds: int,
    update: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Measure every solver in every type at every length.

    Args:
        artifact: A model with LUCID layers; its weights are used, not its graphs.
        lengths: Tokens of the texts.
        questions: Questions about needles at each length, where the tokenizer can write them.
        rounds: Solves of one layer that are timed.
        update: Called with (what is measured, done, in all).

    Returns:
        By length, solver and type: ``error`` (None: not all numbers are finite), ``milliseconds`` of one layer's
        solve (the median), ``same_best``, and ``needles`` (None: not asked).

    Raises:
        LucidError: No LUCID layers, the diagonal of training, or a length that is too long.
    """
    _check(artifact, lengths)
    tokenizer = TextTokenizer(artifact.directory) if (artifact.directory / "tokenizer.json").is_file() else None
    exact = load_artifact_model(artifact, dtype="float64").store_cache_as("auto")  # where Y is read
    model = with_solvers(load_artifact_model(artifact, dtype="float32"))
    session, eps = TorchSession(model), artifact.config.rms_norm_eps
    rows: list[Row] = []
    total = len(lengths) * len(SOLVERS) * len(DTYPES)
    for length in lengths:
        task = None if tokenizer is None else _task(tokenizer, session, length, questions)
        ids = tokenizer.encode(task.questions[0].prompt) if task and tokenizer else _repeating(artifact, length)
        logits, cache = exact(torch.tensor([ids]))
        layers, best = _systems(exact, cache), logits.argmax(-1)  # (1, N)
        for name in SOLVERS:
            for dtype in DTYPES:
                update(f"{name} in {dtype}, {length} tokens", len(rows), total)
                use(model, name, dtype)
                row = {"length": length, "solver": name, "dtype": dtype, **_measure(layers, eps, name, dtype, rounds)}
                row["same_best"] = _same_best(model(torch.tensor([ids]))[0], best)
                rows.append({**row, "needles": _answered(session, tokenizer, task)})
    return rows


def _check(artifact: Artifact, lengths: Sequence[int]) -> None:
    config = artifact.config
    if LUCID not in config.kinds:
        raise LucidError(f"{artifact.directory} has no LUCID layers, so there is no system to solve.")
    if config.diagonal == TRAINING:
        raise LucidError(
            f"{artifact.directory} was exported with --diagonal training; --solvers compares solves of a system whose "
            "diagonal is 1. Export without it."
        )
    most = min(LONGEST, config.max_position_embeddings)
    if max(lengths) > most:
        raise LucidError(
            f"--solvers compares up to {most} tokens here, the least of {LONGEST} (whole matrices) and the model's "
            f"context; --lengths has {max(lengths)}."
        )


def _task(tokenizer: TextTokenizer, session: TorchSession, length: int, questions: int) -> Task | None:
    """Return questions about needles; None if the tokenizer cannot write them or they do not fit."""
    try:
        return needles_task(tokenizer, session.config.max_position_embeddings, lengths=[length], limit=questions)
    except LucidError:
        return None


def _repeating(artifact: Artifact, length: int) -> list[int]:
    """Return a text that repeats itself, so that keys resemble each other."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(artifact.config.vocab_size, (max(length // 4, 1),), generator=generator)
    return few.repeat(-(-length // len(few)))[:length].tolist()


def _systems(model: LucidForCausalLM, cache: list[LayerCache]) -> list[tuple[Tensor, Tensor]]:
    """Return keys and the exact Y, float64 ``(KV, N, D)``, of every LUCID layer."""
    pairs = zip(model.config.kinds, cache, strict=True)
    return [(layer[0][0], layer[1][0]) for kind, layer in pairs if kind == LUCID]


def _measure(layers: list[tuple[Tensor, Tensor]], eps: float, name: str, dtype: str, rounds: int) -> Row:
    """Return the largest error over layers and heads, and the median time of one layer's solve in milliseconds."""
    error = 0.0
    for keys, exact in layers:
        for k, y in zip(keys, exact, strict=True):  # (N, D); a head at a time, since the matrix is whole
            x = entries(k, eps)
            error = max(error, relative_error(solve(name, dtype, x, (y + x @ y).float())[None], y[None]))
    (keys, exact), rounded, times = layers[0], getattr(torch, dtype), list[float]()
    x = entries(keys, eps)  # (KV, N, N)
    v, x = (exact + x @ exact).to(rounded), x.to(rounded)
    for _ in range(rounds):
        begun = time.perf_counter()
        SOLVERS[name](x, v)
        times.append(1000 * (time.perf_counter() - begun))
    return {"error": error if math.isfinite(error) else None, "milliseconds": round(statistics.median(times), 3)}


def _same_best(found: Tensor, best: Tensor) -> float:
    """Return the share of positions whose best token is the right one; logits that are not finite have none."""
    finite = found.isfinite().all(-1)
    return float(((found.argmax(-1) == best) & finite).double().mean())


def _answered(session: TorchSession, tokenizer: TextTokenizer | None, task: Task | None) -> dict[str, Any] | None:
    """Return how many questions are answered rightly: none if the logits are not finite."""
    if tokenizer is None or task is None:
        return None
    try:
        return evaluate(session, tokenizer, task).score.to_dict()
    except CheckFailed:
        return {"right": 0, "count": len(task.questions), "accuracy": 0.0, "interval": None}


class SolverAttention(LucidAttention):
    """LUCID attention that solves a whole prompt in one of the ways to be compared.

    Attributes:
        way: Name of a solver, and the type that it rounds to.
    """

    way = ("dense", "float32")

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, v_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solve prompts; questions after them and single tokens go LUCID's usual way."""
        if k_past.shape[2] or k.shape[2] == 1:
            return super().attend(q, k, v, keys, k_past, v_past, step)
        x = entries(k, self.config.rms_norm_eps)  # (B, KV, N, N)
        if step.mask is not None:
            x = x * (step.mask[:, None, :, None] & step.mask[:, None, None, :])
        y = solve(*self.way, x, v)
        return causal_attention(q, keys, y, step.mask), y, y


class SolverKind(LayerKind):
    """LUCID's layers with :class:`SolverAttention`."""

    name = SOLVER

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """Describe them like LUCID's."""
        return replace(layer_kind(LUCID).describe(config, index, cache_dtype), kind=self.name)

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """Return the layer's attention."""
        return SolverAttention(config, implementation)


def with_solvers(model: LucidForCausalLM) -> LucidForCausalLM:
    """Return the model with LUCID layers whose solve :func:`use` chooses; its weights are shared."""
    register_layer_kind(SolverKind())
    kinds = tuple(SOLVER if kind == LUCID else kind for kind in model.config.kinds)
    other = LucidForCausalLM(replace(model.config, layer_kinds=kinds))
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def use(model: LucidForCausalLM, solver: str, dtype: str) -> None:
    """Let the layers of :func:`with_solvers` solve in another way from now on."""
    for module in model.modules():
        if isinstance(module, SolverAttention):
            module.way = (solver, dtype)

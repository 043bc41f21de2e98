"""Ways to solve LUCID's triangular system L Y = V, side by side: error, time, and the model's answers.

L = I + X, X strictly lower triangular. Each way takes X and the right-hand side rounded to a type, accumulates products
in float32 (float64 for float64), and rounds whatever it stores to that type. They are readable, not fast. Keys and
values are the bundled model's on a text with needles; errors of Y are against float64, the largest over layers and
heads. The result is the table of docs/evaluation.md.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from common import write_result
from torch import Tensor

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import CheckFailed
from lucid_deploy.evaluation import Task, evaluate, needles_task
from lucid_deploy.export import export
from lucid_deploy.model.attention.lucid import LucidAttention
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind, layer_kind, register_layer_kind
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.plugins.block_inverse.reference import invert_unit_lower
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.shared.keys import compute_dtype, normalize_keys
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from lucid_deploy.runtimes.torch.session import TorchSession

BLOCK = 64
DTYPES = ("float32", "float16", "bfloat16")
Solver = Callable[[Tensor, Tensor], Tensor]


def entries(k: Tensor, eps: float) -> Tensor:
    """Return X = exp(K̂K̂ᵀ/√d − √d) below the diagonal and 0 elsewhere: ``(…, N, D)`` to ``(…, N, N)``."""
    root_d = math.sqrt(k.shape[-1])
    k_hat = normalize_keys(k, eps)
    return torch.exp(k_hat @ k_hat.mT / root_d - root_d).tril(-1)


def solve_dense(x: Tensor, v: Tensor) -> Tensor:
    """Solve L Y = V at once with LAPACK, from X ``(…, N, N)`` and V ``(…, N, D)``; return Y, in the shape of V."""
    work = compute_dtype(v.dtype)
    return torch.linalg.solve_triangular(x.to(work), v.to(work), upper=False, unitriangular=True).to(v.dtype)


def solve_by_substitution(x: Tensor, v: Tensor) -> Tensor:
    """Solve row by row: y_i = v_i − Σ_{j<i} x_ij y_j. Shapes as in :func:`solve_dense`."""
    work, y = compute_dtype(v.dtype), torch.zeros_like(v)
    for i in range(v.shape[-2]):
        seen = x[..., i : i + 1, :i].to(work) @ y[..., :i, :].to(work)  # (…, 1, D)
        y[..., i : i + 1, :] = (v[..., i : i + 1, :].to(work) - seen).to(v.dtype)
    return y


def solve_blocked(x: Tensor, v: Tensor) -> Tensor:
    """Solve block row by block row with merged inverses of the diagonal blocks. Shapes as in :func:`solve_dense`."""
    work, y = compute_dtype(v.dtype), torch.zeros_like(v)
    for start in range(0, v.shape[-2], BLOCK):
        rows = slice(start, min(start + BLOCK, v.shape[-2]))
        size = rows.stop - start
        seen = x[..., rows, :start].to(work) @ y[..., :start, :].to(work)  # (…, b, D)
        block = x.new_zeros((*x.shape[:-2], BLOCK, BLOCK), dtype=work)
        block[..., :size, :size] = x[..., rows, rows].to(work)
        inverse = invert_unit_lower(block)[..., :size, :size].to(v.dtype).to(work)
        y[..., rows, :] = (inverse @ (v[..., rows, :].to(work) - seen)).to(v.dtype)
    return y


def solve_by_powers(x: Tensor, v: Tensor) -> Tensor:
    """Multiply by ∏ (I + (−X)^(2^k)), which is L⁻¹ in exact arithmetic. It fails for correlated keys.

    The powers of −X grow like binomials and alternate, so their sum cancels. Shapes as in :func:`solve_dense`.
    """
    work, y, power = compute_dtype(v.dtype), v, -x
    for _ in range(max(1, math.ceil(math.log2(v.shape[-2])))):
        y = (y.to(work) + power.to(work) @ y.to(work)).to(v.dtype)
        power = (power.to(work) @ power.to(work)).to(v.dtype)
    return y


SOLVERS: dict[str, Solver] = {
    "dense": solve_dense,
    "blocked": solve_blocked,
    "substitution": solve_by_substitution,
    "powers": solve_by_powers,
}


def solve(name: str, dtype: str, x: Tensor, v: Tensor) -> Tensor:
    """Solve with X and V rounded to a type; the result has V's own type."""
    rounded = getattr(torch, dtype)
    return SOLVERS[name](x.to(rounded), v.to(rounded)).to(v.dtype)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the largest ‖found − exact‖ / ‖exact‖ over the heads ``(…, N, D)``; infinite if a number is not finite."""
    difference = (found.double() - exact).flatten(-2).norm(dim=-1) / exact.flatten(-2).norm(dim=-1)
    return float(difference.max()) if bool(difference.isfinite().all()) else math.inf


LUCID, SOLVER = "lucid", "lucid_solver"
Row = dict[str, Any]


@torch.inference_mode()
def compare_solvers(artifact: Artifact, lengths: Sequence[int], questions: int, rounds: int) -> list[Row]:
    """Measure every solver in every type at every length.

    Args:
        artifact: A model with LUCID layers whose tokenizer can write texts with needles, at most 4096 tokens long (the
            matrices are whole, 128 MiB a head in float64 there); its weights are used, not its graphs.
        lengths: Tokens of the texts.
        questions: Questions about needles at each length.
        rounds: Solves of one layer that are timed.

    Returns:
        By length, solver and type: ``error`` (None: not all numbers are finite), ``milliseconds`` of one layer's
        solve (the median), ``same_best``, and ``needles``.
    """
    tokenizer = TextTokenizer(artifact.directory)
    exact = load_artifact_model(artifact, dtype="float64").store_cache_as("auto")  # where Y is read
    model = with_solvers(load_artifact_model(artifact, dtype="float32"))
    session, eps, longest = TorchSession(model), artifact.config.rms_norm_eps, artifact.config.max_position_embeddings
    rows: list[Row] = []
    for length in lengths:
        task = needles_task(tokenizer, longest, lengths=[length], limit=questions)
        ids = torch.tensor([tokenizer.encode(task.questions[0].prompt)])
        logits, cache = exact(ids)
        layers, best = _systems(exact, cache), logits.argmax(-1)  # (1, N)
        for name, dtype in itertools.product(SOLVERS, DTYPES):
            use(model, name, dtype)
            row = {"length": length, "solver": name, "dtype": dtype, **_measure(layers, eps, name, dtype, rounds)}
            row["same_best"] = _same_best(model(ids)[0], best)
            rows.append({**row, "needles": _answered(session, tokenizer, task)})
    return rows


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


def _answered(session: TorchSession, tokenizer: TextTokenizer, task: Task) -> dict[str, Any]:
    """Return how many questions are answered correctly: none if the logits are not finite."""
    try:
        return evaluate(session, tokenizer, task).score.to_dict()
    except CheckFailed:
        return {"right": 0, "count": len(task.questions), "accuracy": 0.0, "interval": None}


class SolverAttention(LucidAttention):
    """LUCID attention that solves a whole prompt with one of the compared solvers.

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
        """Return LUCID's description of a layer under this kind's name."""
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


@click.command()
@click.option("--lengths", default="64,256,500", show_default=True, help="Tokens of the texts.")
@click.option("--questions", default=40, show_default=True, help="Questions at each length.")
@click.option("--rounds", default=5, show_default=True, help="Runs that are timed.")
@click.option("--write/--no-write", default=True, help="Write benchmarks/results/solvers.json.")
def main(lengths: str, questions: int, rounds: int, write: bool) -> None:
    """Measure every way in every type at every length."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        artifact = export("demo", Path(scratch) / "artifact")
        rows = compare_solvers(artifact, [int(each) for each in lengths.split(",")], questions, rounds)
    for row in rows:
        shown = "none" if row["error"] is None else f"{row['error']:.1e}"
        right = row["needles"]["right"]
        print(
            f"{row['length']:5d} {row['solver']:13s}{row['dtype']:9s} error {shown} {row['milliseconds']:8.2f} ms, "
            f"best token as in float64 {100 * row['same_best']:.1f} %, {right} of {questions} right"
        )
    if write:
        write_result("solvers", {"questions": questions, "rows": rows})


if __name__ == "__main__":
    main()

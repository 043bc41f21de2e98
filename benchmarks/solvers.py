"""How LUCID's system is solved: error, time, and how many needles the bundled model still finds, by length.

Dense, blocked with merged inverses, row by row, and by powers of the matrix (a warning), each in float32, float16 and
bfloat16. Keys and values are the bundled model's own on texts with needles. The error is against float64, the largest
over layers and heads, null where numbers are not finite. Answers come from the whole model, in float32 but for the
solve.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import Any

import click
import torch
from common import write_result
from torch import Tensor

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bench.solvers import DTYPES, SOLVERS, entries, relative_error, solve
from lucid_deploy.errors import CheckFailed
from lucid_deploy.evaluation import Task, evaluate, needles_task
from lucid_deploy.model.attention.lucid import LucidAttention
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model, resolve
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind, layer_kind, register_layer_kind
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.mixer import Mixer, Step
from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.runtimes.torch.session import TorchSession


class SolverAttention(LucidAttention):
    """LUCID attention that solves a whole prompt in one of the ways to be compared."""

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

    name = "lucid_solver"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """See :meth:`LayerKind.describe`."""
        return replace(layer_kind("lucid").describe(config, index, cache_dtype), kind=self.name)

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """See :meth:`LayerKind.mixer`."""
        return SolverAttention(config, implementation)


def with_solvers(model: LucidForCausalLM) -> LucidForCausalLM:
    """Return the model with its LUCID layers' solve to be chosen by :attr:`SolverAttention.way`."""
    register_layer_kind(SolverKind())
    kinds = tuple(SolverKind.name if kind == "lucid" else kind for kind in model.config.kinds)
    other = LucidForCausalLM(replace(model.config, layer_kinds=kinds))
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def systems(model: LucidForCausalLM, ids: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return X, V and the exact Y, float64 ``(KV, N, ·)``, of every layer on a text."""
    cache = model.double()(torch.tensor([ids]))[1]
    found = []
    for keys, values in cache:
        x, y = entries(keys[0].double(), model.config.rms_norm_eps), values[0].double()
        found.append((x, y + x @ y, y))
    return found


def measure(layers: list[tuple[Tensor, Tensor, Tensor]], name: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Return the largest error over the layers, and the median time of one layer's solve in milliseconds."""
    error = max(0.0, *(relative_error(solve(name, dtype, x, v.float()), y) for x, v, y in layers))
    (x, v, _), times = layers[0], []
    x, v = x.to(getattr(torch, dtype)), v.to(getattr(torch, dtype))
    for _ in range(rounds):
        begun = time.perf_counter()
        SOLVERS[name](x, v)
        times.append(1000 * (time.perf_counter() - begun))
    return {"error": error if math.isfinite(error) else None, "milliseconds": round(statistics.median(times), 3)}


def answered(session: TorchSession, tokenizer: TextTokenizer, task: Task) -> dict[str, Any]:
    """Return how many questions are answered rightly; none if the logits are not finite."""
    try:
        return evaluate(session, tokenizer, task).score.to_dict()
    except CheckFailed:
        return {"right": 0, "count": len(task.questions), "accuracy": 0.0, "interval": None}


@click.command(help=__doc__)
@click.option("--lengths", default="64,256,500", show_default=True, help="Tokens of the texts.")
@click.option("--questions", default=40, show_default=True, help="Of each length.")
@click.option("--rounds", default=5, show_default=True, help="Runs that are timed.")
@click.option("--write/--no-write", default=True, help="Write benchmarks/results/solvers.json.")
def main(lengths: str, questions: int, rounds: int, write: bool) -> None:
    """Measure every way in every type at every length."""
    torch.set_num_threads(1)
    tokenizer, checkpoint = TextTokenizer(resolve(DEMO)), Checkpoint(resolve(DEMO))
    session = TorchSession(with_solvers(load_model(checkpoint, torch.float32)))
    exact, rows = load_model(checkpoint, torch.float64), []
    for length in map(int, lengths.split(",")):
        task = needles_task(tokenizer, session.config.max_position_embeddings, lengths=[length], limit=questions)
        layers = systems(exact, tokenizer.encode(task.questions[0].prompt))
        for name in SOLVERS:
            for dtype in DTYPES:
                SolverAttention.way = (name, dtype)
                row = {"length": length, "solver": name, "dtype": dtype, **measure(layers, name, dtype, rounds)}
                rows.append({**row, "needles": answered(session, tokenizer, task)})
                shown = "none" if row["error"] is None else f"{row['error']:.1e}"
                print(
                    f"{length:5d} {name:13s}{dtype:9s} error {shown} {row['milliseconds']:8.2f} ms, "
                    f"{rows[-1]['needles']['right']} of {questions} right",
                    flush=True,
                )
    if write:
        write_result("solvers", {"questions": questions, "rows": rows})


if __name__ == "__main__":
    main()

"""Decoding with a mixture of experts beside a dense model with as many active parameters, at batch 1.

The mixture has 64 experts, of which a token chooses 8, so that it has 7 times the weights that one token reads. Both
models have random weights and decode in turn in one process. Tokens are random, so chosen experts change.
Both run on one thread, whose processor time counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import write_result
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from lucid_deploy.api import Artifact, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.options import RuntimeOptions

EXPERTS, CHOSEN, WIDTH = 64, 8, 256
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
CONFIGS = {
    "mixture": Qwen3MoeConfig(
        **SIZES, num_experts=EXPERTS, num_experts_per_tok=CHOSEN, moe_intermediate_size=WIDTH, norm_topk_prob=True
    ),
    "dense": Qwen3Config(**SIZES, intermediate_size=CHOSEN * WIDTH),
}
PROMPT = 64


def exported(name: str, scratch: Path, quantize: str | None) -> Artifact:
    """Export a random model, which is ``mixture`` or ``dense``."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(scratch / name)
    options = QuantizeOptions(quantize, activations="float") if quantize else None  # the default with experts
    return export(scratch / name, scratch / f"{name}-artifact", cache="static", quantize=options)


@click.command()
@click.option("--quantize", type=click.Choice(["int8", "int4"]), help="Quantize both.")
@click.option("--tokens", default=400, show_default=True, help="Tokens that each model decodes.")
@click.option("--result", help="Name of the results' file; default: they are not kept.")
def main(quantize: str | None, tokens: int, result: str | None) -> None:
    """Measure both models."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {name: exported(name, Path(folder), quantize) for name in CONFIGS}
        sessions = {
            name: open_session(made, RuntimeOptions(kernels="library", threads=1)) for name, made in artifacts.items()
        }
        caches = {name: session.empty_cache(1) for name, session in sessions.items()}
        prompt = rng.integers(SIZES["vocab_size"], size=(1, PROMPT))
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for name, session in sessions.items():
            session.prefill(prompt, caches[name])
        for _ in range(tokens):
            token = rng.integers(SIZES["vocab_size"], size=(1, 1))
            for name, session in sessions.items():
                started = time.thread_time()
                session.decode(token, caches[name])
                times[name].append(time.thread_time() - started)
    kept = {name: np.array(each[tokens // 4 :]) for name, each in times.items()}  # after all experts were read once
    ratios = kept["mixture"] / kept["dense"]
    found = {
        "quantize": quantize,
        "milliseconds": {
            name: {"least": 1e3 * float(each.min()), "quarter": 1e3 * float(np.quantile(each, 0.25))}
            for name, each in kept.items()
        },
        "ratio": {
            "of_least": float(kept["mixture"].min() / kept["dense"].min()),
            "of_quarters": float(np.quantile(kept["mixture"], 0.25) / np.quantile(kept["dense"], 0.25)),
            "median": float(np.median(ratios)),
        },
    }
    click.echo(found)
    if result is not None:
        write_result(result, found)


if __name__ == "__main__":
    main()

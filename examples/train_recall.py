"""Train the bundled checkpoint: a small LUCID model that looks up one entry of a list.

The task and its held-out prompts are in lucid_deploy/demo/recall.py. A training sequence is a list and several
questions with their answers. Lists start short and grow. Two things make the lookup quick to learn: parameters start
out so that the first layer looks back a few tokens and the others attend to similar words, and for the first half of
the training two attention heads are shown where to look. After that the loss counts the answers alone. The result is a
checkpoint in the published layout.

With ``--hybrid`` the first and the last of the three layers are of the delta rule, and the one between them attends.

This file holds what any training of a LUCID model needs: configuration, loop, loss, and a checkpoint that lucid-deploy
exports. What only this task needs is in recall_training/: words, sequences, parameters, supervision, progress.

Measured for the bundled checkpoint (all options at their defaults, PyTorch 2.13, two CPU cores shared with other
work): 15 minutes, the last 1000 steps in 3 of them; 2000 of 2000 held-out prompts right.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from recall_training.data import IGNORED, Curriculum, training_batch
from recall_training.guide import Guide
from recall_training.progress import Curve, Progress, accuracy
from recall_training.start import new_model
from recall_training.words import SPECIAL_IDS, VOCABULARY, build_tokenizer, tokenizer_config
from safetensors.torch import save_file

from lucid_deploy.demo import recall
from lucid_deploy.model.lucid import LucidForCausalLM

PEAK_RATE, WARMUP = 3e-3, 100  # of AdamW; steps
DELTA = {"key_heads": 4, "value_heads": 4, "key_width": 32, "value_width": 32, "kernel": 4, "gate": "silu"}


def config_json(attention: str, hybrid: bool = False) -> dict[str, Any]:
    """Return ``config.json``: Hugging Face's Llama keys and those that LUCID adds.

    Args:
        attention: ``lucid`` or ``llama``.
        hybrid: Whether only the second layer is of that attention, between two of the delta rule.
    """
    middle = "lucid" if attention == "lucid" else "standard"
    layers = {"layer_kinds": ["delta", middle, "delta"], "layer_settings": {"delta": DELTA}}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_type": attention,
        "which_rmsnorm": "exp_k_norm",
        "use_rope": True,
        "use_beta": False,
        "use_forget_gate": False,
        "vocab_size": len(VOCABULARY),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        **SPECIAL_IDS,
        "torch_dtype": "float32",
        **(layers if hybrid else {}),
    }


def learning_rate(step: int, steps: int) -> float:
    """Return the factor on ``PEAK_RATE``: a linear warm-up, then a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / min(WARMUP, steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(
    attention: str, steps: int, seed: int, curve: Curve | None = None, plain: bool = False, hybrid: bool = False
) -> LucidForCausalLM:
    """Train a model from nothing and print the progress.

    Args:
        attention: ``lucid`` or ``llama``.
        steps: Optimizer steps.
        seed: Seed of the parameters and the data.
        curve: Where to note the progress, and held-out prompts answered on the way.
        plain: Without either help: parameters start random, and attention heads are not shown where to look.
        hybrid: Layers of the delta rule around one layer of ``attention``.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    raw = config_json(attention, hybrid)
    model = new_model(raw, plain)
    guide, curriculum, progress = Guide(model), Curriculum(rng), Progress(steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.97), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    for step in range(steps):
        batch = training_batch(rng, curriculum.draw())
        guide.aim(batch)
        logits, _ = model(batch.inputs)  # (batch, tokens, vocab)
        answered = batch.labels != IGNORED
        loss = F.cross_entropy(logits[answered], batch.labels[answered])
        optimizer.zero_grad()
        help_weight = 0.0 if plain else max(0.0, 1 - 2 * step / steps)  # weight of the attention supervision
        (loss + help_weight * guide.loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right = (logits[answered].argmax(-1) == batch.labels[answered]).float().mean().item()
        curriculum.record(right)
        progress.report(step + 1, curriculum.longest, loss.item(), right)
        if curve is not None:
            curve.record(step + 1, model, curriculum.longest, loss.item(), right)
    guide.remove()
    return model.eval().requires_grad_(False)


def save(model: LucidForCausalLM, output: Path) -> None:
    """Write the checkpoint: configuration, weights, tokenizer."""
    output.mkdir(parents=True, exist_ok=True)
    raw = config_json(model.config.attention_type, hybrid="delta" in model.config.kinds)
    write_json(output / "config.json", raw)
    write_json(output / "generation_config.json", {**SPECIAL_IDS, "do_sample": False, "max_new_tokens": 8})
    write_json(output / "tokenizer_config.json", tokenizer_config(model.config.max_position_embeddings))
    build_tokenizer().save(str(output / "tokenizer.json"))
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    (output / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON for people."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@click.command(help=__doc__)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory to write to."
)
@click.option(
    "--attention",
    type=click.Choice(["lucid", "llama"]),
    default="lucid",
    show_default=True,
    help="LUCID, or standard attention in a model of the same size, to compare with.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=2500, show_default=True, help="Optimizer steps of about 2000 tokens."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of parameters and data.")
@click.option(
    "--prompts",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Held-out prompts to answer at the end.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Threads; the order of summation depends on their number.",
)
@click.option(
    "--curve",
    "curve_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write how training went to this JSON file, with 200 held-out prompts answered every 100 steps.",
)
@click.option("--plain", is_flag=True, help="Random parameters at the start, and no attention supervision.")
@click.option("--hybrid", is_flag=True, help="Layers of the delta rule around one layer of --attention.")
def main(
    output: Path,
    attention: str,
    steps: int,
    seed: int,
    prompts: int,
    threads: int,
    curve_file: Path | None,
    plain: bool,
    hybrid: bool,
) -> None:
    """Train, save, and measure on held-out prompts."""
    torch.set_num_threads(threads)
    start = time.monotonic()
    curve = Curve(every=100, prompts=200) if curve_file else None
    model = train(attention, steps, seed, curve, plain, hybrid)
    save(model, output)
    if curve_file and curve:
        facts = {"attention": attention, "steps": steps, "seed": seed, "threads": threads, "plain": plain}
        facts |= {"hybrid": True} if hybrid else {}
        write_json(curve_file, {**facts, "curve": curve.to_json()})
    print(f"trained and saved to {output} in {(time.monotonic() - start) / 60:.1f} minutes")
    results = accuracy(model, recall.held_out(prompts))
    for pairs, (right, count) in results.items():
        print(f"lists of {pairs:2d}: {right / count:7.2%} of {count} held-out prompts right")
    right, count = (sum(column) for column in zip(*results.values(), strict=True))
    print(f"all lists: {right / count:.2%} right, {count - right} of {count} wrong")


if __name__ == "__main__":
    main()

"""What a LoRA adapter for each batch row costs in decoding: steps with and without, in turn, at batch 1 and 8.

The model is random, of a chosen shape, and runs in onnxruntime with the library of kernels and a static cache. Adapters
of one rank change all linear layers but the head; each row of a batch has its own. Before anything is timed, rows
without an adapter must give the base model's logits.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import SHAPES, write_random_checkpoint, write_result
from safetensors.torch import save_file

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.runtimes import open_session

PROMPT, ROUNDS, STEPS = 64, 24, 2  # tokens of each row; rounds, of which two warm up; steps of each in a round


def write_adapter(directory: Path, checkpoint: Path, rank: int) -> Path:
    """Write a random adapter of all linear layers but the head, as PEFT does."""
    directory.mkdir(parents=True, exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, (rows, columns) in (item for item in Checkpoint(checkpoint).stored_shapes().items() if len(item[1]) == 2):
        if ".layers." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.01
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def measure(artifacts: dict[str, Artifact], batch: int) -> dict[str, Any]:
    """Time decode steps of all contenders in turn; return medians of milliseconds, and of ratios to the base."""
    vocabulary = artifacts["base"].config.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (batch, PROMPT))
    chosen = {"base": None, "no adapter": np.zeros(batch, np.int64), "adapters": np.arange(1, batch + 1)}
    sessions = {"base": open_session(artifacts["base"], kernels="library")}
    sessions["no adapter"] = sessions["adapters"] = open_session(artifacts["adapters"], kernels="library")
    caches, logits = {}, {}
    for name, session in sessions.items():
        caches[name] = session.empty_cache(batch, chosen[name])
        logits[name] = session.prefill(ids, caches[name])
    np.testing.assert_allclose(logits["no adapter"], logits["base"], rtol=1e-3, atol=1e-3)
    assert np.abs(logits["adapters"] - logits["base"]).max() > 1e-3
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                session.decode(ids[:, :1], caches[name])
            seconds[name].append((time.perf_counter() - started) / STEPS)
    found = {name: values[2:] for name, values in seconds.items()}
    ratios = {name: np.array(values) / np.array(found["base"]) for name, values in found.items()}
    return {
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in found.items()},
        "of the base's time": {name: float(np.median(values)) for name, values in ratios.items()},
    }


@click.command()
@click.option("--shape", type=click.Choice([*SHAPES]), default="published", show_default=True)
@click.option("--layers", type=int, help="Number of layers; default: the shape's.")
@click.option("--rank", type=int, default=16, show_default=True)
@click.option("--quantize", type=click.Choice(["int8", "int4"]))
@click.option("--work", type=click.Path(path_type=Path), help="Folder for artifacts, kept; default: a temporary one.")
def main(shape: str, layers: int | None, rank: int, quantize: str | None, work: Path | None) -> None:
    """Measure what adapters cost in decoding."""
    with tempfile.TemporaryDirectory() as scratch:
        root = (work or Path(scratch)) / f"{shape}-{layers}-{rank}-{quantize}"
        checkpoint = write_random_checkpoint(
            root / "checkpoint", shape, changes={"num_hidden_layers": layers} if layers else {}
        )
        adapter = write_adapter(root / "adapter", checkpoint, rank)
        options: dict[str, Any] = {"cache": "static"}
        options |= {"quantize": QuantizeOptions(quantize)} if quantize else {}
        more = {"base": {}, "adapters": {"adapters": tuple((f"a{number}", adapter) for number in range(8))}}
        artifacts = {
            name: open_artifact(root / name)
            if (root / name).is_dir()
            else export(checkpoint, root / name, ExportOptions(**options, **extra))
            for name, extra in more.items()
        }
        found = {f"batch {batch}": measure(artifacts, batch) for batch in (1, 8)}
        facts = {"shape": shape, "layers": layers, "rank": rank, "quantize": quantize, **found}
        click.echo(json.dumps(facts, indent=2))
        write_result(f"adapters-{shape}-{quantize or 'float32'}", facts)


if __name__ == "__main__":
    main()

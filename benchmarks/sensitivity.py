"""What rounding the weights of one kind alone to int4 costs the logits, with LUCID's solve and without it.

The models of ``quantization_methods.py``, the bundled model, and each of them with standard attention on the same
weights: the difference between the two is what the solve makes of an error. Weights are rounded to nearest.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import write_result
from quantization_methods import SHAPE, SHARED, key_correlation, write_model

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo.recall import held_out
from lucid_deploy.export.quantize.automatic import nearest_sensitivities
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.export.quantize.sensitivity import LogitErrors, by_kind
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model, resolve


def as_standard(directory: Path, target: Path) -> Checkpoint:
    """Write a checkpoint with standard attention on the weights of another."""
    raw = json.loads((directory / "config.json").read_text())
    raw |= {"attention_type": "llama", "use_qknorm": False}
    target.mkdir()
    (target / "config.json").write_text(json.dumps({key: raw[key] for key in raw if key != "which_rmsnorm"}))
    (target / "model.safetensors").symlink_to((directory / "model.safetensors").resolve())
    return Checkpoint(target)


def table(checkpoint: Checkpoint, ids: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the error of the logits by kind, and with all kinds rounded."""
    plan = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, QuantizeOptions("int4"))
    kinds, errors = by_kind(list(plan.tensors), checkpoint.tied), LogitErrors(checkpoint, ids)
    whole = {"all": list(plan.tensors)}
    found = nearest_sensitivities(checkpoint, plan, kinds, errors, "float32")[4]
    return {**found, **nearest_sensitivities(checkpoint, plan, whole, errors, "float32")[4]}


@click.command(help=__doc__)
def main() -> None:
    """Measure, print, and write benchmarks/results/sensitivity.json."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root, ids = Path(scratch), np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (8, 256))
        models = {}
        for name, shared in SHARED.items():
            write_model(root / name, shared)
            models[name] = root / name, ids
        tokenizer = TextTokenizer(resolve(DEMO))
        tokens = [token for item in held_out(60) for token in tokenizer.encode(f"{item.prompt} {item.answer}")]
        models["bundled"] = resolve(DEMO), np.array(tokens[: 8 * 400]).reshape(8, 400)
        for name, (directory, asked) in models.items():
            lucid = Checkpoint(directory)
            standard = as_standard(directory, root / f"{name}, standard")
            results[name] = {
                "key_correlation": key_correlation(load_model(lucid), torch.from_numpy(asked)),
                "lucid": table(lucid, asked),
                "standard": table(standard, asked),
            }
            print(name, json.dumps(results[name]), flush=True)
    write_result("sensitivity", {"int4, rounded to nearest": results})


if __name__ == "__main__":
    main()

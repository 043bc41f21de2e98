"""What the methods of ``export --quantize --method`` leave of small models' logits.

Models are random but for one number: how much all tokens share, which the keys of every layer then share too, as in
trained models. Each learns from one half of random tokens and is measured on the other; the bundled model learns from
prompts of its task and is measured on others. Errors are those of the weights alone, in float32; what the bundled model
answers by each method is in methods_side_by_side.py.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import BASE, logit_errors, recall_texts, write_result
from safetensors.torch import save_file

from lucid_deploy.artifact.folded_scales import scaled
from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.export.calibration import calibration_rows
from lucid_deploy.export.quantize.hqq import hqq_matrix
from lucid_deploy.export.quantize.method import LearnedWeights
from lucid_deploy.export.quantize.nearest import quantize_matrix
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.export.quantize.registry import find_method
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model
from lucid_deploy.model.config import parse_config
from lucid_deploy.model.lucid import LucidForCausalLM

SHARED = {"independent": 0.0, "half": 0.5, "most": 1.0, "nearly all": 3.0}  # the direction that embeddings share
SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
SCHEMES, METHODS = ("int4", "int8"), ("rtn", "hqq", "awq", "gptq")


def write_model(directory: Path, shared: float) -> None:
    """Write a random checkpoint, and the token ids it learns from."""
    raw = {**BASE, **SHAPE, "use_rope": False}  # as in the published shape: rotation would hide what keys share
    torch.manual_seed(0)
    model = LucidForCausalLM(parse_config(raw, "model"))
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table.mul_(0.5).add_(shared * torch.randn(SHAPE["hidden_size"]))
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.mul_(3)
            layer.self_attn.v_proj.weight.mul_(3)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(raw))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / "model.safetensors")
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (32, 256))
    (directory / "ids.jsonl").write_text("\n".join(str(row.tolist()) for row in ids))


def key_correlation(model: LucidForCausalLM, ids: torch.Tensor) -> float:
    """Return the mean cosine of two different tokens' keys, over layers and heads."""
    with torch.inference_mode():
        caches = model(ids)[1]
    found = []
    for keys, _ in caches:
        unit = torch.nn.functional.normalize(keys, dim=-1)  # (B, KV, N, D)
        n = unit.shape[2]
        cosines = unit @ unit.mT
        found.append(
            float((cosines.sum() - cosines.diagonal(dim1=-2, dim2=-1).sum()) / (cosines.numel() * (1 - 1 / n)))
        )
    return float(np.mean(found))


def rounded(checkpoint: Checkpoint, options: QuantizeOptions, text: Path) -> tuple[Quantization, LucidForCausalLM]:
    """Return the record and the model on the weights that an export with these options would write."""
    record, learned = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, options), LearnedWeights()
    if options.learns:
        rows = calibration_rows(checkpoint, text, options.calibration_tokens, 1)
        learned, record = find_method(options.method).learn(checkpoint, record, rows, options, "float32", None)
    model = load_model(checkpoint)
    state = {name: scaled(checkpoint.tensor(name), name, learned.folded).float() for name in model.state_dict()}
    for name, tensor in record.tensors.items():
        parts: tuple[Any, ...]
        if tensor.offsets:
            packed, scales, offsets = hqq_matrix(checkpoint.tensor(name), tensor, record.bits)
            parts = packed, scales.numpy(), offsets.mT.numpy().reshape(-1)
        else:
            nearest = quantize_matrix(checkpoint.tensor(name), tensor, record.bits)
            parts = learned.parts.get(name) or tuple(map(np.concatenate, zip(*nearest, strict=True)))
        state[name] = torch.from_numpy(dequantize(record, name, parts[0].reshape(-1), *parts[1:])).float()
    model.load_state_dict(state, assign=True)
    return record, model


def errors(checkpoint: Checkpoint, text: Path, ids: torch.Tensor) -> dict[str, Any]:
    """Return every method's error of logits over ``ids``, int64 ``(B, N)``."""
    exact_model = load_model(checkpoint)
    with torch.inference_mode():
        exact = exact_model(ids)[0].numpy()
    found: dict[str, Any] = {"key_correlation": key_correlation(exact_model, ids)}
    for scheme in SCHEMES:
        for method in METHODS:
            record, model = rounded(checkpoint, QuantizeOptions(scheme, method=method), text)
            with torch.inference_mode():
                logits = model(ids)[0].numpy()
            found[f"{scheme} {method}"] = {
                "bits_per_weight": record.bits_per_weight("float32"),
                **logit_errors(logits, exact),
            }
    print(json.dumps(found), flush=True)
    return found


@click.command(help=__doc__)
def main() -> None:
    """Measure, print, and write benchmarks/results/quantization_methods.json."""
    torch.set_num_threads(1)
    models = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, shared in SHARED.items():
            write_model(root / name, shared)
            ids = np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (8, 256))
            models[name] = errors(Checkpoint(root / name), root / name / "ids.jsonl", torch.from_numpy(ids))
        prompts, unseen = recall_texts()
        (root / "prompts.txt").write_text("\n".join(prompts))
        models["bundled"] = errors(Checkpoint(DEMO), root / "prompts.txt", unseen[: 16 * 400].reshape(16, 400))
    write_result("quantization_methods", {"models": models})


if __name__ == "__main__":
    main()

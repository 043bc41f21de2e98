"""What the methods of ``export --quantize --method`` leave of small models' logits, and of the bundled model's answers.

Models are random but for one number: how much all tokens share, which the keys of every layer then share too, as in
trained models. Each learns from one half of random tokens and is measured on the other; the bundled model learns from
prompts of its task and is measured on others, and on needles in texts of 500 tokens. Errors are those of the weights
alone, in float32; answers are those of artifacts in onnxruntime, inputs of products in int8.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import BASE, write_result
from safetensors.torch import save_file

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo.recall import held_out
from lucid_deploy.evaluation import compare, evaluate, needles_task
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import calibration_rows
from lucid_deploy.export.quantize import plan_quantization
from lucid_deploy.export.quantize_options import QuantizeOptions
from lucid_deploy.export.rounding.learn import GptqSettings, learn_weights
from lucid_deploy.export.rounding.nearest import quantize_matrix
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model, resolve
from lucid_deploy.model.config import parse_config
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.parity.measure.metrics import kl_divergence, position_errors
from lucid_deploy.runtimes import open_session

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
SCHEMES, METHODS = ("int4", "int8"), ("rtn", "gptq")


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
    record = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, options)
    parts: dict[str, Any] = {}
    if options.learns:
        rows = calibration_rows(checkpoint, text, options.calibration_tokens, 1)
        learned, record = learn_weights(checkpoint, record, rows, GptqSettings(), "float32")
        parts = learned.parts
    model = load_model(checkpoint)
    state = model.state_dict()
    for name, tensor in record.tensors.items():
        nearest = quantize_matrix(checkpoint.tensor(name), tensor, record.bits)
        packed, scales = parts.get(name) or map(np.concatenate, zip(*nearest, strict=True))
        state[name] = torch.from_numpy(dequantize(record, name, packed.reshape(-1), scales)).float()
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
                "bits_per_weight": record.bits + 32 / record.block_size,  # scales in float32
                "relative_error": float(position_errors(logits, exact).mean()),
                "kl_mean": float(kl_divergence(logits, exact).mean()),
                "top1": float((logits.argmax(-1) == exact.argmax(-1)).mean()),
            }
        found[f"{scheme} ratio"] = found[f"{scheme} gptq"]["relative_error"] / found[f"{scheme} rtn"]["relative_error"]
    print(json.dumps(found), flush=True)
    return found


def needles(root: Path, text: Path) -> dict[str, Any]:
    """Ask the bundled model for needles in texts of 500 tokens, in float32 and by every method."""
    tokenizer, results, reference = TextTokenizer(resolve(DEMO)), {}, None
    variants: dict[str, QuantizeOptions | None] = {"float32": None}
    variants |= {
        f"{scheme} {method}": QuantizeOptions(scheme, method=method) for scheme in SCHEMES for method in METHODS
    }
    for name, options in variants.items():
        calibration = text if options is not None and options.learns else None
        artifact = export(DEMO, root / name, ExportOptions(quantize=options, calibration=calibration))
        session = open_session(artifact, threads=1)
        task = needles_task(tokenizer, session.config.max_position_embeddings, needles=4, lengths=[500], limit=500)
        report = evaluate(session, tokenizer, task, batch=8)
        reference = reference or report
        results[name] = {**report.score.to_dict(), "relative_accuracy": compare(report, reference).relative}
        print(name, results[name], flush=True)
    return results


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
        demo, text, tokenizer = Checkpoint(DEMO), root / "prompts.txt", TextTokenizer(resolve(DEMO))
        lines = [f"{example.prompt} {example.answer}" for example in held_out(600)]
        text.write_text("\n".join(lines[:300]))
        unseen = np.array([token for line in lines[300:] for token in tokenizer.encode(line)])
        models["bundled"] = errors(demo, text, torch.from_numpy(unseen[: 16 * 400].reshape(16, 400)))
        asked = needles(root, text)
    write_result("quantization_methods", {"models": models, "needles of 500 tokens": asked})


if __name__ == "__main__":
    main()

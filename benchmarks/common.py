"""What the benchmark scripts share: random checkpoints of any size, and results with machine, versions and commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lucid_deploy.bench.machine import describe_machine
from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.parity.metrics import kl_divergence, position_errors

RESULTS = Path(__file__).parent / "results"

BASE: dict[str, Any] = {
    "model_type": "llama",
    "attention_type": "lucid",
    "which_rmsnorm": "exp_k_norm",
    "use_rope": True,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# The shapes that targets are set for.
SHAPES: dict[str, dict[str, Any]] = {
    "medium": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 131072,
    },
    # As medium in size; three of four layers are of the gated delta rule. Without layer_kinds all are LUCID.
    "hybrid": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "layer_kinds": ["gated_delta", "gated_delta", "gated_delta", "lucid"] * 2,
        "layer_settings": {
            "gated_delta": {"key_heads": 8, "value_heads": 8, "key_width": 64, "value_width": 64, "gate": "silu"}
        },
    },
    # The same in small, for a quick check that the script runs.
    "small-hybrid": {
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 131072,
        "layer_kinds": ["gated_delta", "gated_delta", "gated_delta", "lucid"],
        "layer_settings": {
            "gated_delta": {"key_heads": 4, "value_heads": 4, "key_width": 16, "value_width": 16, "gate": "silu"}
        },
    },
    # For a quick check that a script runs.
    "small": {
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 131072,
    },
    "long": {
        "vocab_size": 1000,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 131072,
    },
    "published": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 68,
        "max_position_embeddings": 2048,
    },
}


def write_random_checkpoint(
    directory: Path, shape: str, shard_bytes: int = 1 << 30, changes: dict[str, Any] | None = None
) -> Path:
    """Write a checkpoint of one of the shapes with random weights, in shards, holding one shard in memory at a time.

    Args:
        directory: The directory to write.
        shape: The shape's name in :data:`SHAPES`.
        shard_bytes: Least size of a shard but the last.
        changes: Keys of the configuration to replace; a key that is None is left out.
    """
    raw = {key: value for key, value in {**BASE, **SHAPES[shape], **(changes or {})}.items() if value is not None}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw, indent=2))
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    size = count = 0

    def flush() -> None:
        nonlocal shard, size, count
        name = f"model-{count:05d}.safetensors"
        save_file(shard, directory / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard, size, count = {}, 0, count + 1

    for name, dimensions in expected_shapes(parse_config(raw, shape)).items():
        if len(dimensions) == 1:
            tensor = torch.ones(dimensions)
        else:
            tensor = torch.randn(dimensions, generator=generator) * dimensions[1] ** -0.5
        shard[name] = tensor
        size += tensor.nbytes
        if size >= shard_bytes:
            flush()
    if shard:
        flush()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_standard_twin(checkpoint: Path) -> Path:
    """Write a checkpoint with standard attention beside another, with links to its weights; return its directory."""
    twin = checkpoint.with_name(f"standard-{checkpoint.name}")
    twin.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "config.json":
            (twin / path.name).symlink_to(path)
    raw = json.loads((checkpoint / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps({**raw, "attention_type": "llama"}))
    return twin


def in_process(module: str, call: str) -> dict[str, Any]:
    """Call a function of a benchmark script in a new process, with memory and imports of its own; return its result.

    Args:
        module: The script's name without ``.py``.
        call: The call as Python text, such as ``f(1)``; the function must return plain data.
    """
    code = f"import json, {module}; print(json.dumps({module}.{call}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def logit_errors(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> dict[str, float]:
    """Compare logits ``(B, N, vocab)`` with exact ones.

    Returns:
        ``relative_error``: ‖difference‖ / ‖exact‖, mean over rows and positions; ``worst_row``: the largest one of any
        row at each position, mean over positions; ``kl_mean``: Kullback-Leibler divergence in nats; ``top1``: share of
        positions at which both prefer the same token.
    """
    by_row = [position_errors(row[None], right[None]) for row, right in zip(found, exact, strict=True)]
    return {
        "relative_error": float(np.mean(by_row)),
        "worst_row": float(position_errors(found, exact).mean()),
        "kl_mean": float(kl_divergence(found, exact).mean()),
        "top1": float((found.argmax(-1) == exact.argmax(-1)).mean()),
    }


def write_result(name: str, data: dict[str, Any]) -> None:
    """Write a result, with machine, versions and commit, into benchmarks/results, and print the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe_machine(), **data}, indent=2) + "\n")
    print(f"wrote {path}")

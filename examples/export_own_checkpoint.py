"""From a PyTorch model of your own to an artifact that is proven right, in Python alone.

The model here has random weights, so its answers mean nothing; put your trained one in its place. What matters is the
layout: Hugging Face's Llama names, LUCID's keys in config.json, weights as safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from lucid_deploy.export import ExportOptions, export
from lucid_deploy.generation.generate import Generation
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.parity.verification import VerifyOptions, verify_artifact
from lucid_deploy.runtimes import open_session

CONFIG = {
    "model_type": "llama",
    "attention_type": "lucid",
    "which_rmsnorm": "exp_k_norm",
    "use_rope": True,
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 68,  # any width: it need not be hidden_size / num_attention_heads, nor a power of two
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}


def write_checkpoint(model: torch.nn.Module, directory: Path) -> None:
    """Write a model in the published layout."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / "model.safetensors")


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for checkpoint and artifact.")
def main(output: Path) -> None:
    """Write a checkpoint, export it, verify it against PyTorch and generate with it."""
    torch.manual_seed(0)
    write_checkpoint(LucidForCausalLM(parse_config(CONFIG, "this script")), output / "checkpoint")

    artifact = export(output / "checkpoint", output / "artifact", ExportOptions(cache="static", overwrite=True))

    verification = verify_artifact(artifact, VerifyOptions(steps=16))  # all that `lucid-deploy verify` checks
    verification.raise_if_failed()
    for check in verification.checks:
        print(f"{check.name}: {check.outcome} ({check.detail})")

    session = open_session(artifact)
    print("Tokens:", list(Generation(session, prompt_ids=[1, 17, 4, 200], max_new_tokens=8)))


if __name__ == "__main__":
    main()

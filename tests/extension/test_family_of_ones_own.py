"""A family defined here (other tensor names, one more norm) is exported, run and verified without changing the product.

The checkpoint is written by a model of this file, in plain PyTorch, that shares nothing with the product.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.block import Layer
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.families import Family, StoredParameter, family_named, register_family
from lucid_deploy.model.mixer import LayerCache, Step
from lucid_deploy.model.parts import RMSNorm
from lucid_deploy.parity import VerifyOptions
from lucid_deploy.parity.verification import verify_against
from lucid_deploy.runtimes import open_session

WIDTH, HEADS, INNER, LAYERS, VOCAB, EPS = 48, 3, 80, 2, 61, 1e-5
HEAD = WIDTH // HEADS
RAW: dict[str, Any] = {
    "model_type": "branch",
    "architectures": ["BranchForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "rms_norm_eps": EPS,
    "branch_gain": 0.5,
    "attention_type": "lucid",
    "use_rope": False,
}


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


class Original(nn.Module):
    """The model as its authors would publish it: LUCID attention whose output is normed before it is added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.25 * torch.randn(*shape) if len(shape) == 2 else 1 + 0.3 * torch.randn(*shape))

        self.wte = nn.Parameter(0.3 * torch.randn(VOCAB, WIDTH) + torch.randn(WIDTH))  # correlated keys
        self.ln_f, self.out = weight(WIDTH), weight(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ParameterDict(
                {
                    "ln_1": weight(WIDTH),
                    "attn_qkv": weight(3 * WIDTH, WIDTH),
                    "attn_out": weight(WIDTH, WIDTH),
                    "ln_attn": weight(WIDTH),
                    "ln_2": weight(WIDTH),
                    "gate": weight(INNER, WIDTH),
                    "up": weight(INNER, WIDTH),
                    "down": weight(WIDTH, INNER),
                }
            )
            for _ in range(LAYERS)
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte[ids]  # (B, N, C)
        for block in self.blocks:
            x = x + 0.5 * normed(self.attention(block, normed(x, block["ln_1"])), block["ln_attn"])
            h = normed(x, block["ln_2"])
            x = x + (F.silu(h @ block["gate"].mT) * (h @ block["up"].mT)) @ block["down"].mT
        return normed(x, self.ln_f) @ self.out.mT

    def attention(self, block: Any, x: Tensor) -> Tensor:
        batch, n, _ = x.shape
        q, k, v = (
            part.view(batch, n, HEADS, HEAD).transpose(1, 2) for part in (x @ block["attn_qkv"].mT).split(WIDTH, -1)
        )
        k_hat = k / torch.sqrt((k * k).mean(-1, keepdim=True) + EPS)
        e = torch.exp(k_hat @ k_hat.mT / math.sqrt(HEAD) - math.sqrt(HEAD))
        system = e.tril(-1) + torch.eye(n, dtype=x.dtype)
        y = torch.stack([torch.linalg.inv(one) for one in system.flatten(0, 1)]).view(system.shape) @ v
        scores = (q @ k.mT / math.sqrt(HEAD)).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        return (scores.softmax(-1) @ y).transpose(1, 2).reshape(batch, n, -1) @ block["attn_out"].mT


class BranchKeys(msgspec.Struct, kw_only=True, frozen=True):
    branch_gain: float = 1.0


class BranchLayer(Layer):
    """One more norm, on what attention gives, and a gain."""

    def __init__(self, config: LucidConfig, index: int, implementation: str) -> None:
        super().__init__(config, index, implementation)
        self.gain = config.layer_settings["branch_gain"]
        self.branch_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        mixed, present = self.mixer(self.input_layernorm(x), step, past)
        x = x + self.gain * self.branch_norm(mixed)
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Branch(Family):
    """As an installed package would define it."""

    model_type = "branch"
    architectures = ("BranchForCausalLM",)
    keys = BranchKeys
    parts: ClassVar[dict[str, str]] = {
        "self_attn.o_proj": "attn_out",
        "input_layernorm": "ln_1",
        "branch_norm": "ln_attn",
        "post_attention_layernorm": "ln_2",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        return dataclasses.replace(config, layer_settings={"branch_gain": keys.branch_gain})

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        whole = {"model.embed_tokens.weight": "wte", "model.norm.weight": "ln_f", "lm_head.weight": "out"}
        if name in whole:
            return StoredParameter(whole[name])
        index, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part in self.parts:
            return StoredParameter(f"blocks.{index}.{self.parts[part]}")
        row = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(part) * config.hidden_size
        return StoredParameter(f"blocks.{index}.attn_qkv", (row, row + config.hidden_size))

    def layer(self, config: LucidConfig, index: int, implementation: str) -> Layer:
        return BranchLayer(config, index, implementation)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_family(Branch())
    directory = tmp_path_factory.mktemp("branch") / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(RAW))
    save_file(
        {name: value.detach() for name, value in Original().state_dict().items()}, directory / "model.safetensors"
    )
    return directory


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(checkpoint, tmp_path_factory.mktemp("artifact") / "growing", ExportOptions(cache="growing"))


def tokens() -> np.ndarray:
    found = np.random.default_rng(0).integers(0, VOCAB, (2, 70))
    found[1, 10:40] = 7
    return found


def test_the_model_is_the_original_in_float64(checkpoint: Path) -> None:
    with torch.no_grad():
        wanted = Original().double()(torch.from_numpy(tokens()))
        found, _ = load_model(checkpoint, torch.float64)(torch.from_numpy(tokens()))
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()


@pytest.mark.parametrize("chunks", [(70,), (1, 33, 20)])
def test_the_graphs_compute_the_original(artifact: Artifact, chunks: tuple[int, ...]) -> None:
    """The gate is four times the error of the original in float32."""
    with torch.no_grad():
        exact = Original().double()(torch.from_numpy(tokens())).numpy()
        rounded = Original()(torch.from_numpy(tokens())).numpy()
    session = open_session(artifact, "onnxruntime", kernels="functions")
    cache, start, logits = session.empty_cache(2), 0, np.zeros(0)
    for size in chunks:
        logits = session.prefill(tokens()[:, start : start + size], cache)
        start += size
    for position in range(start, 70):
        logits = session.decode(tokens()[:, position : position + 1], cache)
    assert np.linalg.norm(logits[:, -1] - exact[:, -1]) <= 4 * np.linalg.norm(rounded[:, -1] - exact[:, -1])


def test_the_artifact_is_verified(artifact: Artifact, checkpoint: Path) -> None:
    session = open_session(artifact, "onnxruntime", kernels="functions")
    assert verify_against(session, Checkpoint(checkpoint), VerifyOptions(steps=6)).passed


def test_wrong_keys_and_tensors_of_the_family_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match="branch_gain"):
        parse_config({**RAW, "branch_gain": "a"}, "config.json")
    with pytest.raises(LucidError, match="branch_gian is 1"):
        parse_config({**RAW, "branch_gian": 1}, "config.json")
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    stored = dict(Original().state_dict())
    del stored["blocks.1.ln_attn"]
    stored["blocks.0.attn_qkv"] = stored["blocks.0.attn_qkv"][1:].contiguous()
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(
        LucidError, match=r"missing: blocks\.1\.ln_attn; .*blocks\.0\.attn_qkv is \[143, 48\]"
    ) as caught:
        Checkpoint(tmp_path)
    assert "asks for [144, 48]" in str(caught.value)


def test_families_of_the_toolkit_cannot_be_replaced() -> None:
    with pytest.raises(LucidError, match="comes with lucid-deploy"):
        register_family(type("Other", (Branch,), {"model_type": "llama"})())
    with pytest.raises(LucidError, match="Family 'bramch' is not known; known are llama, delta_net"):
        family_named("bramch")

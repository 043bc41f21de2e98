"""Classes of transformers as models: equal to eager attention in float64, with LUCID put in, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.masking_utils import chunked_causal_mask_function

from lucid_deploy.errors import LucidError
from lucid_deploy.model.build import parse_model_config
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.transformers_class import configuration, module, trial
from lucid_deploy.model.transformers_class.module import ClassModel
from lucid_deploy.parity.on_demand import float64_on_demand
from tests.families.small import VOCABULARY, logits_of, saved, small_config
from tests.model.family_shapes import SHAPES, random_model

# Windows, soft caps, partial rotation, biases, LayerNorm, norms that scale by 1 + w, layers without positions,
# positions that are learned, parallel layers, several embeddings' scales, heads of several parts, tied biases, experts
# that a checkpoint stores one by one, a delta rule whose projections it stores apart, values narrower than keys,
# positions that the class counts itself or from behind its padding token.
CLASSES = (
    "apertus",
    "bart",
    "bert-generation",
    "cohere2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma4_text",
    "glm4",
    "gpt2",
    "gpt_oss",
    "lara_mini",
    "mixtral",
    "olmo2",
    "phi",
    "roberta",
)


LONG = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


MORE: dict[str, Any] = {
    "mixtral": {"num_local_experts": 11, "num_experts": 11}
}  # whose names are not in the order of their numbers


def parsed(kind: str, **more: Any) -> LucidConfig:
    return parse_model_config({**json.loads(small_config(kind).to_json_string(use_diff=False)), **more}, "config.json")


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_equal_to_eager_attention_in_float64(kind: str, tmp_path: Path) -> None:
    theirs = saved(small_config(kind, **MORE.get(kind, {})), tmp_path)
    ids = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[1, 8:16] = 7
    ids[ids == 1] = 2  # the padding token of some
    wanted = logits_of(theirs, ids)
    source = Checkpoint(tmp_path)
    assert source.config.class_config and LucidConfig.from_dict(source.config.to_dict()) == source.config
    model = float64_on_demand(source.config, lambda name: source.tensor(source.stored_name(name)))
    with torch.no_grad():
        whole, _ = model(ids)
        first, past = model(ids[:, :9])
        second, past = model(ids[:, 9:23], past, torch.ones(2, 23))
        last, _ = model(ids[:, 23:], past, torch.ones(2, 24), decode=True, last_only=True)
    for found in (whole, torch.cat([first, second, last], dim=1)):
        assert (found - wanted).norm() <= 1e-12 * wanted.norm()


def test_heads_for_further_tokens_are_passed_over_as_in_its_code(tmp_path: Path) -> None:
    random_model(SHAPES["qwen3_5_text"]["tied"]()).float().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "mtp.fc.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).config.family == "qwen3_5_text"


@pytest.mark.parametrize("kind", ("cohere2", "olmo2", "phi"))
def test_lucid_in_a_class_is_tried_against_the_dense_formulas(kind: str) -> None:
    config = parsed(kind, attention_type="lucid")
    assert "lucid" in config.kinds
    assert "it agrees within" in trial.prove(config, "here")


def test_the_trial_finds_what_is_computed_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ClassModel):
        def __init__(self, config: LucidConfig, implementation: str = "blocked") -> None:
            super().__init__(config, implementation)
            vars(self.mixers()[1].config).update(sliding_window=4, softcap=1.0)

    monkeypatch.setattr(trial, "ClassModel", Wrong)
    with pytest.raises(LucidError, match=r"layer 1 \(window\) differs by 0\.\d+ from transformers"):
        trial.prove(parsed("gemma2", layer_types=["full_attention", "sliding_attention"] * 2), "here")
    with pytest.raises(LucidError, match=r"layer 3 \(standard\) differs by 0\.\d+ from transformers"):
        trial.prove(parsed("cohere2", attention_type="lucid"), "here")


def test_positions_that_do_not_begin_at_0_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "first_position", lambda _: 0)
    with pytest.raises(LucidError, match="does not count positions from 0"):
        trial.prove(parsed("roberta", pad_token_id=1), "here")


def test_a_text_of_a_class_that_counts_from_its_padding_token_is_shorter() -> None:
    assert parsed("roberta", pad_token_id=1).max_position_embeddings == 128 - 2


def test_positions_that_begin_behind_an_unknown_padding_token_are_refused() -> None:
    with pytest.raises(LucidError, match="has no pad_token_id"):
        parsed("roberta", pad_token_id=None)


def test_the_layers_that_compute_the_same_are_known() -> None:
    shapes = parsed("cohere2").attention  # every fourth layer attends to all, without rotary positions
    assert [shape.like for shape in shapes] == [0, 0, 0, 3]
    assert [shape.window for shape in shapes] == [7, 7, 7, None]


def test_chunks_are_no_window() -> None:
    chunks = chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int64))
    for length in (16, 128):
        run = configuration._MetaRun([], length)
        with pytest.raises(LucidError, match="neither causal nor a sliding window"):
            run._window(0, run.mask(chunks))


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("diffllama", {}, "layer 0 calls attention twice"),
        ("bloom", {}, "layer 0 does not call attention by transformers' registry"),
        ("bert", {}, "neither causal nor a sliding window"),
        ("llama4_text", {}, r"does not call its experts \(.*\) by transformers' registry"),
        ("llama4_text", {"moe_layers": []}, "neither causal nor a sliding window"),  # but chunks
        ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 4}, "would choose 4 experts, and there are 3"),
        ("gpt_oss", {"attention_type": "lucid"}, "sinks, which LUCID attention does not compute"),
        ("gemma3", {}, "computes more than text"),
        ("olmo2", {"attention_sink": 4}, "does not know the key attention_sink"),
        ("olmo2", {"use_rope": False, "attention_type": "lucid"}, "use_rope is False"),
        ("phi3", {"rope_scaling": {"type": "longrope", **LONG}}, "longrope"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 5e5}}, "does not read rope_theta of rope_parameters"),
        ("olmo2", {"architectures": ["Olmo2ForSequenceClassification"]}, "supported is Olmo2ForCausalLM"),
        ("olmo2", {"attention_type": "lucid", "lucid_layers": [9]}, "lucid_layers names layer 9, but there are"),
        ("olmo2", {"lucid_layers": [1]}, "lucid_layers needs attention_type lucid"),
        ("olmo2", {"attention_type": "lucid", "lucid_layers": [], "layer_kinds": ["lucid"]}, "exclude each other"),
        ("gemma2", {"attention_type": "lucid"}, "caps its scores"),
        ("olmo2", {"hidden_act": "nothing"}, "cannot be made from it: KeyError"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(kind: str, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(LucidError, match=reason) as caught:
        parse_model_config({"model_type": kind, "num_hidden_layers": 2, **more}, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "published", "refused"),
    [
        ("qwen3_moe", {"head_dim": 16}, {"heads_dim": 16}),  # the model reads it, the configuration does not
        ("phi3", {"attention_bias": False, "auto_map": {"AutoConfig": "theirs.Config"}}, {"attention_bias": True}),
        ("gemma2", {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "silu"}),
        ("gpt_oss", {"experts_per_token": 4}, {"experts_per_token": 2}),
        ("deepseek_v3", {"aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1}, {"topk_method": "other"}),
    ],
)
def test_keys_of_published_checkpoints(kind: str, published: dict[str, Any], refused: dict[str, Any]) -> None:
    """What a class reads elsewhere, or by another key, is no unknown key."""
    config = {**small_config(kind).to_dict(), "model_type": kind, **published}
    if kind == "gpt_oss":
        config["num_experts_per_tok"] = 4
    found = parse_model_config(config, "config.json")
    assert kind != "qwen3_moe" or found.head_dim == 16
    with pytest.raises(LucidError, match=f"does not know the key {next(iter(refused))}"):
        parse_model_config({**config, **refused}, "config.json")


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    saved(small_config("qwen3_moe"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.3.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LucidError, match=r"missing: model.layers.2.mlp.experts.3.up_proj.weight\.$"):
        Checkpoint(tmp_path)


def test_half_precision_keeps_the_rotary_tables(tmp_path: Path) -> None:
    saved(small_config("olmo2"), tmp_path)
    model = load_model(tmp_path, torch.bfloat16)
    assert isinstance(model, ClassModel) and isinstance(model.model, nn.Module)
    assert model.embedding.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}

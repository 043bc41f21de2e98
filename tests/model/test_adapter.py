"""LoRA adapters made by PEFT: weights equal its own merge; what is not supported is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lucid_deploy as ld
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.model.adapter import WEIGHTS
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from tests.families.small import saved, small_config

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MakeCheckpoint = Callable[..., Path]


def train(model: Any, path: Path, **settings: Any) -> Any:
    """Make an adapter of random numbers and save it; return PEFT's model."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=draw))
    adapted.save_pretrained(path)
    return adapted


def merged(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in adapted.merge_and_unload().state_dict().items()}


@pytest.fixture
def made(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> tuple[Path, Path]:
    """A LUCID checkpoint and an adapter of it."""
    checkpoint = make_checkpoint()
    train(load_model(checkpoint), tmp_path / "lora", target_modules=["q_proj", "down_proj"], r=4)
    return checkpoint, tmp_path / "lora"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ALL, "r": 4, "lora_alpha": 24},
        {"target_modules": ALL, "r": 4, "use_rslora": True, "init_lora_weights": "gaussian"},
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 3},
            "alpha_pattern": {r"layers\.0\..*": 20, "q_proj": 5},
        },
        {"target_modules": ["v_proj"], "layers_to_transform": [1], "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
    ids=["all", "rslora", "patterns", "modules to save", "embedding"],
)
def test_weights_of_lucid_equal_pefts(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, settings: dict[str, Any]
) -> None:
    checkpoint = make_checkpoint()
    wanted = merged(train(load_model(checkpoint), tmp_path / "lora", **settings))
    path = tmp_path / "lora" / "adapter_config.json"
    given, usual = json.loads(path.read_text()), {"r", "lora_alpha"} - settings.keys()  # for which PEFT has defaults
    path.write_text(json.dumps({name: value for name, value in given.items() if name not in usual}))
    found = load_model(Checkpoint(checkpoint, adapter=tmp_path / "lora")).state_dict()
    plain = load_model(checkpoint).state_dict()
    assert any(not torch.equal(plain[name], found[name]) for name in found)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    ],
)
def test_weights_of_classes_equal_pefts(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    base = saved(small_config(kind, tie_word_embeddings=False), tmp_path / kind).float()
    base.save_pretrained(tmp_path / kind)
    train(base, tmp_path / "lora", **settings)
    ids = torch.arange(5, 17)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.float64)
    wanted = peft.PeftModel.from_pretrained(again, tmp_path / "lora").merge_and_unload()(ids).logits
    model = load_model(Checkpoint(tmp_path / kind, adapter=tmp_path / "lora"), torch.float64)
    (found, _), (plain, _) = model(ids), load_model(tmp_path / kind, torch.float64)(ids)
    assert (found - wanted).abs().max() < 1e-4 * (plain - wanted).abs().max()


def change(adapter: Path, **keys: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "VERA"}, "peft_type VERA is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"a_new_method": {"on": True}}, "a_new_method"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base's weights"),
        ({"r": 5}, "says rank 5"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"lora_alpha": "8"}, "lora_alpha"),
    ],
)
def test_other_methods_are_refused_by_name(made: tuple[Path, Path], keys: dict[str, Any], said: str) -> None:
    checkpoint, adapter = made
    change(adapter, **keys)
    with pytest.raises(LucidError, match=said):
        Checkpoint(checkpoint, adapter=adapter)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "cut or corrupted"),
        ("missing", "safe_serialization=True"),
        ("infinite", "not finite"),
        ("half", "only one of the two matrices"),
        ("unknown", "not of a supported kind"),
        ("other names", "changes weights that .* does not have: model.layers.7"),
        ("other shape", r"is \[144, 64\] in the model and \[152, 64\] in the adapter"),
    ],
)
def test_damaged_adapters_are_refused(made: tuple[Path, Path], damage: str, said: str) -> None:
    checkpoint, adapter = made
    path = adapter / WEIGHTS
    tensors = load_file(path)
    a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    b = a.replace("_A", "_B")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "missing":
        path.rename(adapter / "adapter_model.bin")
    else:
        if damage == "infinite":
            tensors[a][0, 0] = torch.nan
        elif damage == "half":
            del tensors[b]
        elif damage == "unknown":
            tensors[a.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(3)
        elif damage == "other names":
            tensors = {name.replace("layers.0", "layers.7"): value for name, value in tensors.items()}
        else:
            tensors[b] = torch.cat([tensors[b], tensors[b][:8]])
        save_file(tensors, path)
    with pytest.raises(LucidError, match=said):
        Checkpoint(checkpoint, adapter=adapter)


def test_a_tied_head_is_not_changed_alone(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    train(load_model(make_checkpoint("untied")), tmp_path / "lora", target_modules=["lm_head"])
    with pytest.raises(LucidError, match="embedding and lm_head are one weight"):
        Checkpoint(checkpoint, adapter=tmp_path / "lora")


def test_an_artifact_has_the_adapter_in_it(made: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, adapter = made
    artifact = ld.export(checkpoint, tmp_path / "artifact", cache="growing", merge_adapter=adapter)
    assert artifact.manifest.adapter == str(adapter)
    shown = CliRunner().invoke(main, ["inspect", str(artifact.directory)]).output
    assert f"The LoRA adapter {adapter} is in its weights." in " ".join(shown.split())
    ld.verify(artifact, quick=True).raise_if_failed()
    adapter.rename(tmp_path / "gone")
    with pytest.raises(LucidError, match=f"the adapter {adapter}, which is not there any more"):
        ld.verify(artifact, quick=True)

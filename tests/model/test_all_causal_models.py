"""Our own families are equal to transformers' classes in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.families import BUILT_IN
from lucid_deploy.model.float64 import all_in_float64
from tests.model.family_shapes import SHAPES, SMALL, random_model


def default_json(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """What ``config.json`` of a model with the class's defaults holds, nothing left out."""
    config = json.loads(json.dumps(config_class().to_dict()))
    kind = config_class.model_type
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, "UnknownForCausalLM")
    return {**config, "model_type": kind, "architectures": [names] if isinstance(names, str) else list(names)[:1]}


OWN_KEYS = (
    "bloom",
    "cohere",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gpt_neox",
    "mamba",
    "mixtral",
    "nemotron",
    "opt",
    "phi",
)


@pytest.mark.parametrize("kind", OWN_KEYS)
def test_under_llamas_name_their_own_keys_are_refused(kind: str) -> None:
    raw = {**default_json(CONFIG_MAPPING[kind]), "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(LucidError):
        parse_config(raw, "config.json")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0, "original_max_position_embeddings": 50}
HYBRIDS = ("qwen3_next", "qwen3_5_moe_text", "qwen3_5_text")  # classes whose layers of the delta rule are ours
COMPUTED: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SMALL),
    "llama, tied, biases": lambda: LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama, wide heads": lambda: LlamaConfig(**SMALL, head_dim=20, rms_norm_eps=1e-3),
    "llama, llama3": lambda: LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "llama, linear": lambda: LlamaConfig(**SMALL, rope_scaling={"type": "linear", "factor": 3.0}, rope_theta=7000.0),
    "llama, an original context that linear leaves unused": lambda: LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "linear",
            "factor": 3.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 50,
        },
    ),
    "llama, gelu": lambda: LlamaConfig(**SMALL, hidden_act="gelu_pytorch_tanh"),
    "llama, yarn": lambda: LlamaConfig(**SMALL, rope_parameters=YARN),
    "llama, yarn with all its settings": lambda: LlamaConfig(
        **SMALL, rope_parameters={**YARN, "beta_fast": 8, "beta_slow": 2, "truncate": False, "attention_factor": 1.3}
    ),
    "llama, yarn with magnitudes": lambda: LlamaConfig(
        **SMALL, rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}
    ),
    **{f"{name}, {shape}": make for name in HYBRIDS for shape, make in SHAPES[name].items()},
}


def save(config: PreTrainedConfig, path: Path) -> Any:
    """A random model whose weights are large enough that every part of it matters, in float64, and on disk."""
    model = random_model(config)
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_taken_equals_transformers_in_float64(name: str, tmp_path: Path) -> None:
    model = save(COMPUTED[name](), tmp_path)
    ids = torch.randint(61, (2, 90), generator=torch.Generator().manual_seed(0))
    ids[1, 20:60] = 7
    with torch.no_grad():
        with all_in_float64():  # a recurrence in float32 would err more than all else
            wanted = model(ids).logits
        ours, _ = load_model(tmp_path, torch.float64)(ids)
        rounded = model.float()(ids).logits
    # Rotary frequencies are float32, computed in another way: as close as transformers' own float32 is.
    # That is 1e-7 to 4e-5 of the logits, depending on the processor; more would make the bound meaningless.
    error, allowed = (ours - wanted).norm(), 3 * (rounded - wanted).norm()
    assert error <= allowed < 1e-3 * wanted.norm()


def test_every_family_that_is_taken_is_compared() -> None:
    of_others = {"delta_net", "gated_deltanet"}  # which are compared in tests/model/families/test_flash_linear.py
    assert {make().model_type for make in COMPUTED.values()} == {*BUILT_IN, *HYBRIDS} - of_others

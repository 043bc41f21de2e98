"""Where norms and residuals stand around a mixer and an MLP: where transformers has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, GraniteConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.granite.modeling_granite import GraniteDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lucid_deploy.model.block import Layer, SandwichLayer, make_layer
from lucid_deploy.model.mixer import Step
from lucid_deploy.model.rope import rope_tables
from tests.model.config_samples import GEMMA, LLAMA, parse

SIZES: dict[str, Any] = {**{key: LLAMA[key] for key in LLAMA if key != "model_type"}, "attn_implementation": "eager"}
MULTIPLIERS = {"residual_multiplier": 0.3, "attention_multiplier": 0.2}
FULL = {"layer_types": ["full_attention"] * 2, "head_dim": 12, "num_attention_heads": 4, "num_key_value_heads": 2}
CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "llama": (LLAMA, LlamaDecoderLayer, LlamaConfig(**SIZES)),
    "granite": (
        {**LLAMA, "model_type": "granite", **MULTIPLIERS},
        GraniteDecoderLayer,
        GraniteConfig(**SIZES, **MULTIPLIERS),
    ),
    "gemma3_text": ({**GEMMA, **FULL}, Gemma3DecoderLayer, Gemma3TextConfig(**{**SIZES, **FULL})),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_transformers_own(name: str) -> None:
    raw, decoder_layer, theirs = CASES[name]
    config = parse(raw)
    torch.manual_seed(0)
    wanted, ours = decoder_layer(theirs, 0).double().eval(), make_layer(config, 0, "blocked").double()
    assert type(ours) is (SandwichLayer if name == "gemma3_text" else Layer)
    for parameter in wanted.parameters():
        parameter.data.normal_(std=0.4)
    plus = 1.0 if name == "gemma3_text" else 0.0  # its norms scale by 1 + w
    ours.load_state_dict({k: w + plus if "norm." in k else w for k, w in wanted.state_dict().items()})
    x, positions = torch.randn(2, 6, 48).double(), torch.arange(6).expand(2, 6)
    rope = config.rope(0)
    assert rope is not None
    tables = rope_tables(rope, config.head_dim, positions, torch.float64)
    mask = torch.full((6, 6), -torch.inf).triu(1).double()[None, None]
    embeddings = tuple(torch.cat([table, table], -1)[:, 0] for table in tables)
    with torch.no_grad():
        got, _ = ours(x, Step(rope=tables), ours.mixer.empty_cache(2, x))
        told = wanted(x, position_embeddings=embeddings, attention_mask=mask, position_ids=positions)
    # transformers' norms compute in float32 whatever the model's type
    torch.testing.assert_close(got, told[0] if isinstance(told, tuple) else told, rtol=1e-5, atol=1e-5)


def test_the_norm_before_the_mlp_is_given_what_attention_left() -> None:
    """A range scan and an explanation of errors look there."""
    for raw, name in ((LLAMA, "post_attention_layernorm"), (GEMMA, "pre_feedforward_layernorm")):
        layer = make_layer(parse(raw, sliding_window=4) if raw is GEMMA else parse(raw), 0, "blocked")
        assert layer.mlp_norm is layer.get_submodule(name)

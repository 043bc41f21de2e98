"""Small models of every class of transformers, with random weights so large that every part of a class matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lucid_deploy.model.float64 import all_in_float64
from lucid_deploy.model.transformers_class.module import restore_buffers

LAYERS = 4
VOCABULARY = 64
# By the names that classes give them; a class gets those that its configuration has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "hidden_dim", "model_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), None),
    "is_decoder": True,  # BERT and its kin are causal with it only
    "vocab_size": VOCABULARY,
    "head_dim": 16,
    "global_head_dim": 16,
    "kv_channels": 16,
    "sliding_window": 7,
    "rotary_dim": 8,
    "word_embed_proj_dim": 64,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "n_shared_experts": 1,
    "v_head_dim": 12,
    "n_group": 2,
    "topk_group": 1,
    "default_language": "en_XX",
}
# For classes whose keys and values come from a low-rank projection, with as many key/value heads as query heads.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "qk_head_dim": 24,
}


def small_config(kind: str, **more: Any) -> PreTrainedConfig:
    """Return the configuration of a small model of a ``model_type``."""
    form = CONFIG_MAPPING[kind]
    default = form()
    inner = [key for key, value in vars(default).items() if isinstance(value, PreTrainedConfig)]
    if inner or not hasattr(default, "num_hidden_layers"):
        raise ValueError(f"it is a model of more than text ({', '.join(inner) or 'several layers'})")
    fixed = [key for key in SIZES if isinstance(getattr(form, key, None), property)]
    known = {*vars(default), *form.attribute_map}
    sizes = {**SIZES, **LATENT} if "kv_lora_rank" in known else SIZES
    given = {key: size for key, size in sizes.items() if key in known and key not in fixed}
    if getattr(default, "sliding_window", None) is None:
        given.pop("sliding_window", None)
    layers = default.num_hidden_layers
    for key, value in vars(default).items():
        if (
            isinstance(value, list)
            and len(value) == layers
            and layers > 2
            and not isinstance(value[0], PreTrainedConfig)
        ):
            given[key] = [*value[: LAYERS - 1], value[-1]]
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    try:
        config: PreTrainedConfig = form(**{**given, **more})
    except StrictDataclassError:  # it must have tokens
        return form(**{**given, **{key: id for key, id in tokens.items() if key in given}, **more})
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None  # some classes put theirs back
    padding = getattr(default, "pad_token_id", None)
    if isinstance(padding, int) and padding < VOCABULARY:
        config.pad_token_id = padding  # by which some classes count positions
    return config


def random_model(config: PreTrainedConfig) -> Any:
    """Return a model in float64 whose tokens share a direction, so that keys are correlated as trained ones are."""
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise) if parameter.dim() > 1 else parameter.add_(0.2 * noise)
        embedding = model.get_input_embeddings().weight
        embedding.add_(0.25 * torch.randn(embedding.shape[1]))
    restore_buffers(model)  # tables that transformers computes in float32
    return model.double()


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return what transformers computes, in float64 throughout."""
    with torch.no_grad(), all_in_float64():
        return model(ids, use_cache=False).logits  # type: ignore[no-any-return]


def saved(config: PreTrainedConfig, path: Path) -> Any:
    """Write a random model as a checkpoint; return it."""
    model = random_model(config)
    model.save_pretrained(path)
    return model

"""The keys of ``config.json``: supported, without effect, or refused by name.

Silently ignoring a key could change what the model computes, and comparing the export with our own reference would not
reveal it. So each key must be in a table here or in the keys of the model's family, unless the user declares it unused.
"""

from __future__ import annotations

import importlib.util
import operator
from collections.abc import Callable, Collection
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import clipped
from lucid_deploy.model.config import ATTENTION_TYPES, LUCID_TYPES
from lucid_deploy.model.config_file import ConfigFile
from lucid_deploy.model.families import Family, families, family_named, family_of

# LUCID's keys. Without attention_type their meaning is unclear, and the authors' code refuses them too.
LUCID_KEYS = ("which_rmsnorm", "use_rope", "use_beta", "use_qknorm", "use_forget_gate", "use_token_grad_clip")

COMPUTED = frozenset(ConfigFile.__struct_fields__)
# Keys that change no logits in evaluation mode, whatever their value: they concern the file, training, outputs, the
# tokenizer, other heads, or defaults of generate.
NO_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _model_name_or_path
    _name_or_path attention_dropout attn_implementation attn_pdrop aux_loss_alpha bad_words_ids begin_suppress_tokens
    cache_implementation chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id
    diversity_penalty do_sample dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size ep_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder label2id length_penalty low_cpu_mem_usage
    mask_token_id max_length min_length model_max_length neftune_noise_alpha no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id seq_aux suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache use_token_grad_clip
    """.split()  # noqa: SIM905 (a table)
)

Harmless = Callable[[Any], bool]


def _one(value: Any) -> bool:
    return value is None or (value == 1 and value is not True)


def _zero(value: Any) -> bool:
    return value is None or (value == 0 and value is not False)


def _only(*values: Any) -> Harmless:
    return lambda value: value is None or value in values


def _all_are(wanted: Any) -> Harmless:
    return lambda value: value is None or (isinstance(value, list) and all(item == wanted for item in value))


# Keys known to change the results, each group with a predicate that is true for the harmless values.
_CHANGES: tuple[tuple[Harmless, str], ...] = (
    (
        operator.not_,
        """
        _sliding_window_pattern add_bias_linear add_cross_attention add_qkv_bias add_unit_offset alibi
        attention_chunk_size attention_layers attention_multiplier attention_out_bias attention_sink attention_types
        attention_window_size attn_layer_period attn_logit_softcapping attn_scale attn_temperature_tuning audio_config
        auto_map bias block_types clip_qkv compression_config dim_model_base final_logit_softcapping floor_scale
        global_attn_every_n_layers global_rope_theta is_encoder_decoder kv_lora_rank layer_norm_eps layer_norm_epsilon
        layer_rope_theta layers_block_type learned_pos_emb lm_head_bias local_attention local_rope_theta
        log_scaling_alpha log_scaling_n_floor logits_soft_cap lucid_layers moe_intermediate_size mup_enabled
        n_routed_experts no_rope_layer_interval nope_layer_interval norm_bias norm_eps norm_epsilon
        normalize_embedding num_experts num_experts_per_tok num_kv_shared_layers num_local_experts num_mtp_layers
        num_nextn_predict_layers output_logit_soft_cap parallel_attn per_layer_config prefix_lm pruned_heads
        q_lora_rank qk_l2_clip_threshold qk_layernorm qk_nope_head_dim qk_norm qkv_bias quantization
        quantization_config query_pre_attn_scalar residual_scale rms_norm_add_unit_offset rope_interleave
        rope_interleaved rope_local_base_freq rotary_dim scale_attn_by_inverse_layer_idx scale_depth scale_embedding
        sinks sliding_window sliding_window_pattern text_config use_alibi use_bias use_bidirectional_attention
        use_forget_gate use_mrope use_mup use_parallel_residual use_qk_layernorm use_qk_norm use_qkv_bias v_head_dim
        vision_config window_size
        """,
    ),
    (
        _one,
        """
        attention_in_multiplier attention_out_multiplier attention_value_scale emb_scale embedding_multiplier
        embedding_scale key_multiplier lm_head_multiplier logit_scale logits_mup_width_multiplier logits_scaling
        mup_width_multiplier partial_rotary_factor residual_multiplier rope_pct rotary_pct scale_emb
        """,
    ),
    (_zero, "key_scaling_exp"),
    (_only(True), "is_causal scale_attn_weights"),
    (_only("rope", "rotary"), "position_embedding_type"),
    (_only("rmsnorm", "rms_norm"), "norm_type normalization"),
    (_only("silu", "swish"), "activation_function hidden_activation"),
    (_all_are(1), "mlp_multipliers no_rope_layers"),
    (_all_are("full_attention"), "layer_types"),
)
CHANGES: dict[str, Harmless] = {key: harmless for harmless, keys in _CHANGES for key in keys.split()}
# Keys that say which layers use LUCID or sliding-window attention. Without LUCID, only the family's own are accepted.
LAYER_KEYS = ("layer_types", "lucid_layers", "sliding_window")
# Keys that matter only together with another key; that key is checked or refused.
WITH_OTHERS = frozenset(
    ("architectures", "max_window_layers", "model_type", "original_max_position_embeddings", "use_sliding_window")
)
KNOWN = COMPUTED | CHANGES.keys() | WITH_OTHERS | NO_EFFECT

ROPE_BLOCKS = ("rope_scaling", "rope_parameters")
# By type of rope block, the keys that it must have. llama3 also needs original_max_position_embeddings.
ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_ROPE_ALWAYS = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")
_ROPE_CHANGES = frozenset(
    """
    alpha attention_factor beta_fast beta_slow factor full_attention high_freq_factor long_factor low_freq_factor
    mrope_interleaved mrope_section mscale mscale_all_dim partial_rotary_factor short_factor sliding_attention truncate
    """.split()  # noqa: SIM905 (a table)
)
_ROPE_KNOWN = _ROPE_CHANGES.union(_ROPE_ALWAYS)


def check_keys(raw: dict[str, Any], where: str, assume_unused: Collection[str] = ()) -> Family:
    """Refuse a configuration unless every key is supported, ignored or in ``assume_unused``; return its family."""
    family = _check_family(raw, where)
    _check_assumed(where, assume_unused, family)
    check_lucid_keys(raw, where, family.computed)
    raw = family.normalized(raw, where)
    refused = [*_refused(raw, family), *_refused_rope(raw)]
    if refused:
        raise LucidError(
            f"{where}: {' '.join(refused)} Ignoring this would give wrong answers. Remove a key from the file only if "
            "the model was trained without what it asks for."
        )
    unknown = sorted(unknown_keys(raw) - set(assume_unused))
    if unknown:
        raise LucidError(_unknown_message(raw, where, unknown))
    return family


def unknown_keys(raw: dict[str, Any]) -> set[str]:
    """Return the keys that no table has; a key of a rope block is spelled ``rope_scaling.key``."""
    inside = {f"{name}.{key}" for name, block in _rope_blocks(raw).items() for key in block if key not in _ROPE_KNOWN}
    return {*(raw.keys() - _known(raw)), *inside}


def value_of(raw: dict[str, Any], key: str) -> Any:
    """Return the value of a key, or of ``block.key`` inside a rope block."""
    outer, _, inner = key.partition(".")
    return raw[outer][inner] if outer in ROPE_BLOCKS and inner else raw[key]


def _known(raw: dict[str, Any]) -> frozenset[str]:
    """Return the keys in the tables for all families and in those of the configuration's own family."""
    family = family_of(raw)
    return KNOWN if family is None else KNOWN | family.computed | family.ignored


def _rope_blocks(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: raw[name] for name in ROPE_BLOCKS if isinstance(raw.get(name), dict) and raw[name]}


def _check_assumed(where: str, assume_unused: Collection[str], family: Family) -> None:
    changing = COMPUTED | CHANGES.keys() | WITH_OTHERS | family.computed
    for key in assume_unused:
        outer, _, inner = key.partition(".")
        if key in changing or (outer in ROPE_BLOCKS and inner in _ROPE_KNOWN):
            raise LucidError(
                f"{where}: {key} is known to change the numbers, so it cannot be assumed unused. If the model was "
                "trained without it, remove it from the file."
            )


def _check_family(raw: dict[str, Any], where: str) -> Family:
    kind, named = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise LucidError(f"{where}: architectures must be a list of names, not {named!r}.")
    if kind is None and not named and raw.get("attention_type") is None:
        raise LucidError(
            f"{where}: model_type is missing, so whose code computes this model is not known; supported are "
            f'{", ".join(families())}. Add "model_type": "llama" if it is Llama, with LUCID\'s keys or without.'
        )
    family = family_of(raw)
    if family is None:
        of = f" ({', '.join(named)})" if named else ""
        also = " ".join(_refused(raw, family_named("llama")))
        if not also:
            also = "transformers has no causal language model of that name."
            if importlib.util.find_spec("transformers") is None:
                also = "Other families need transformers, which the extra export installs."
            also += ' If it is Llama in all but name, set model_type to "llama" and architectures to '
            also += '["LlamaForCausalLM"].'
        raise LucidError(
            f"{where}: model_type {kind!r}{of} is not supported; supported are {', '.join(families())}. Its own code "
            f"may compute something else from the same tensors. {also}"
        )
    of_all = [name for model_type in families() for name in family_named(model_type).architectures]
    allowed = of_all if kind is None else family.architectures
    if set(named) - set(allowed):
        of = f" with model_type {kind!r}" if kind else ""
        raise LucidError(
            f"{where}: architectures {named!r} is not supported{of}; supported is {' or '.join(allowed)}. Another "
            "class computes something else from the same tensors."
        )
    return family


def check_lucid_keys(raw: dict[str, Any], where: str, own: Collection[str] = ()) -> None:
    """Refuse unknown attention types, and LUCID's keys without ``attention_type``, as the authors' code does.

    ``own`` are keys that the model's family has under the same names.
    """
    attention = raw.get("attention_type")
    if attention is not None and attention not in ATTENTION_TYPES:
        raise LucidError(
            f"{where}: attention_type {attention!r} is not supported; supported are {', '.join(ATTENTION_TYPES)}."
        )
    found = [key for key in LUCID_KEYS if raw.get(key) is not None and key not in own]
    if found and attention is None:
        raise LucidError(
            f"{where}: attention_type is missing, beside {', '.join(found)} of LUCID's configuration. Set it to "
            "lucid, or to llama for standard attention."
        )


def _refused(raw: dict[str, Any], family: Family) -> list[str]:
    own = {*family.computed, *family.ignored}
    if raw.get("attention_type") in LUCID_TYPES:  # then any family may have these keys
        own |= set(LAYER_KEYS) if raw.get("layer_types") else {"lucid_layers"}
    if raw.get("use_sliding_window") is False:
        own.add("sliding_window")
    return [
        f"{key} is {_shown(value)}, which changes what the model computes and is not supported."
        for key, value in raw.items()
        if key in CHANGES and key not in own and not CHANGES[key](value)
    ]


def _refused_rope(raw: dict[str, Any]) -> list[str]:
    found, blocks = [], _rope_blocks(raw)
    if len(blocks) == 2 and blocks["rope_scaling"] != blocks["rope_parameters"]:
        found.append(
            "rope_scaling and rope_parameters differ. It is unclear which of them applies, so this is not supported."
        )
    for name, block in blocks.items():
        kind = block.get("rope_type") or block.get("type") or "default"
        if block.get("type") not in (None, kind):
            found.append(f"{name} has rope_type {kind!r} and type {block['type']!r}, which is not supported.")
        if isinstance(kind, str) and kind in ROPE_KEYS:  # other types are refused where the block is read
            found += [
                f"{name}.{key} is {_shown(value)}. rope_type {kind} has no such setting, so it is not supported."
                for key, value in block.items()
                if value is not None
                and key in _ROPE_CHANGES.difference(ROPE_KEYS[kind])
                and not (key == "partial_rotary_factor" and _one(value))
            ]
        original = raw.get("original_max_position_embeddings")  # transformers prefers it to the block's
        if original is not None and original != block.get("original_max_position_embeddings", original):
            found.append(
                f"original_max_position_embeddings is {original!r}, and another in {name}, which is not supported."
            )
    return found


def _unknown_message(raw: dict[str, Any], where: str, unknown: list[str]) -> str:
    named = [f"{clipped(key)} is {_shown(value_of(raw, key))}" for key in unknown]
    they = "This key is" if len(unknown) == 1 else "These keys are"
    way = " ".join(f"--assume-unused {clipped(key)}" for key in unknown)
    return (
        f"{where}: {'; '.join(named)}. {they} not known here, and if the model's own code computes something from it, "
        f"the answers would be wrong. Correct a misspelling; if that code leaves it unused, export with {way}"
    )


def _shown(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"

"""What every key of ``config.json`` means for the numbers: computed, of no effect, or refused by name.

A key that nobody looks at is how a model exports, answers otherwise than its own code, and still passes a comparison
with itself. So a configuration is taken only if each of its keys is in one of the tables here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lucid_deploy.model.config_file import ConfigFile

LUCID_TYPES = ("lucid", "oglucid")
ATTENTION_TYPES = (*LUCID_TYPES, "llama")
# Without attention_type, what LUCID's own keys ask for is open: the authors' code refuses such a configuration too.
LUCID_KEYS = ("which_rmsnorm", "use_rope", "use_beta", "use_qknorm", "use_forget_gate", "use_token_grad_clip")

COMPUTED = frozenset(ConfigFile.__struct_fields__)
# Keys that change no logits of a model in evaluation, whatever their value.
_NO_EFFECT = {
    "describes the file": "_commit_hash _name_or_path dtype torch_dtype transformers_version unsloth_fixed "
    "unsloth_version",
    "is for training": "finetuning_task gradient_checkpointing initializer_range neftune_noise_alpha "
    "use_token_grad_clip",
    "drops values in training only": "attention_dropout attn_pdrop classifier_dropout dropout embd_pdrop "
    "hidden_dropout hidden_dropout_prob resid_pdrop",
    "says how, not what, is computed": "_attn_implementation _attn_implementation_autoset _flash_attn_2_enabled "
    "attn_implementation chunk_size_feed_forward low_cpu_mem_usage pretraining_tp tf_legacy_loss torchscript "
    "use_bfloat16 use_cache",
    "says what is returned": "output_attentions output_hidden_states return_dict",
    "names tokens": "begin_suppress_tokens cls_token_id decoder_start_token_id forced_bos_token_id "
    "forced_eos_token_id mask_token_id pad_token_id sep_token_id suppress_tokens unk_token_id",
    "belongs to the tokenizer": "model_max_length prefix tokenizer_class",
    "is for other heads": "id2label label2id num_labels problem_type task_specific_params",
    "is a default of generate": "bad_words_ids cache_implementation diversity_penalty do_sample early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values "
    "repetition_penalty return_dict_in_generate temperature top_k top_p typical_p",
    "is for encoders": "is_decoder tie_encoder_decoder",
}
NO_EFFECT = frozenset(key for keys in _NO_EFFECT.values() for key in keys.split())

Harmless = Callable[[Any], bool]


def _off(value: Any) -> bool:
    """Null, false, zero and an empty value ask for no computation."""
    return not value


def _one(value: Any) -> bool:
    return value is None or (value == 1 and value is not True)


def _zero(value: Any) -> bool:
    return value is None or (value == 0 and value is not False)


def _only(*values: Any) -> Harmless:
    return lambda value: value is None or value in values


def _all_are(wanted: Any) -> Harmless:
    return lambda value: value is None or (isinstance(value, list) and all(item == wanted for item in value))


# Keys that are known to change the numbers: what they do, for which values they do nothing, and the keys.
_CHANGES: tuple[tuple[str, Harmless, str], ...] = (
    ("It scales the embeddings", _one, "emb_scale embedding_multiplier embedding_scale scale_emb"),
    ("It scales the embeddings", _off, "mup_enabled normalize_embedding scale_embedding use_mup"),
    ("It scales the residuals", _one, "residual_multiplier"),
    ("It scales the residuals", _off, "dim_model_base residual_scale scale_depth"),
    (
        "It scales the attention scores",
        _off,
        "attention_multiplier attn_scale attn_temperature_tuning floor_scale log_scaling_alpha log_scaling_n_floor "
        "query_pre_attn_scalar scale_attn_by_inverse_layer_idx",
    ),
    ("It scales the attention scores", _only(True), "scale_attn_weights"),
    (
        "It scales the outputs of layers",
        _one,
        "attention_in_multiplier attention_out_multiplier attention_value_scale key_multiplier",
    ),
    ("It scales the outputs of layers", _all_are(1), "mlp_multipliers"),
    (
        "It scales the logits",
        _one,
        "lm_head_multiplier logit_scale logits_mup_width_multiplier logits_scaling mup_width_multiplier",
    ),
    ("It caps the logits", _off, "final_logit_softcapping logits_soft_cap output_logit_soft_cap"),
    ("It caps the attention scores", _off, "attn_logit_softcapping clip_qkv qk_l2_clip_threshold"),
    (
        "Attention over a window is another model",
        _off,
        "attention_chunk_size attention_window_size local_attention sliding_window window_size",
    ),
    ("It makes layers of several kinds", _all_are("full_attention"), "layer_types"),
    (
        "It makes layers of several kinds",
        _off,
        "_sliding_window_pattern attention_layers attention_types attn_layer_period block_types "
        "global_attn_every_n_layers layers_block_type lucid_layers per_layer_config sliding_window_pattern",
    ),
    ("It leaves layers without positions", _all_are(1), "no_rope_layers"),
    ("It leaves layers without positions", _off, "no_rope_layer_interval nope_layer_interval"),
    ("It rotates a part of each head only", _one, "partial_rotary_factor rope_pct rotary_pct"),
    ("It rotates a part of each head only", _off, "rotary_dim"),
    ("It rotates pairs of neighbours", _off, "rope_interleave rope_interleaved"),
    (
        "It rotates layers by another base",
        _off,
        "global_rope_theta layer_rope_theta local_rope_theta rope_local_base_freq",
    ),
    ("It encodes positions in another way", _only("rope", "rotary"), "position_embedding_type"),
    ("It encodes positions in another way", _off, "alibi learned_pos_emb use_alibi"),
    ("It normalises queries and keys", _off, "qk_layernorm qk_norm use_qk_layernorm use_qk_norm"),
    ("It is the epsilon of other norms", _off, "layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon"),
    ("It makes norms of another kind", _only("rmsnorm", "rms_norm"), "norm_type normalization"),
    ("It makes norms of another kind", _off, "add_unit_offset norm_bias rms_norm_add_unit_offset"),
    ("It puts attention and MLP side by side", _off, "parallel_attn use_parallel_residual"),
    ("It makes MLPs of another kind", _only("silu", "swish"), "activation_function hidden_activation"),
    (
        "It makes the MLPs mixtures of experts",
        _off,
        "moe_intermediate_size n_routed_experts num_experts num_experts_per_tok num_local_experts",
    ),
    (
        "It adds biases",
        _off,
        "add_bias_linear add_qkv_bias attention_out_bias bias lm_head_bias qkv_bias use_bias use_qkv_bias",
    ),
    ("It shares keys and values among layers", _off, "num_kv_shared_layers"),
    (
        "It makes attention of another kind",
        _off,
        "add_cross_attention attention_sink kv_lora_rank q_lora_rank qk_nope_head_dim sinks v_head_dim",
    ),
    ("Attention to later tokens is another model", _only(True), "is_causal"),
    ("Attention to later tokens is another model", _off, "is_encoder_decoder prefix_lm use_bidirectional_attention"),
    ("It removes heads", _off, "pruned_heads"),
    ("Its weights are quantized", _off, "compression_config quantization quantization_config"),
    ("It describes a model inside of another", _off, "audio_config text_config vision_config"),
    ("A file of code that comes with the checkpoint computes it", _off, "auto_map"),
    ("It adds heads that predict further tokens", _off, "num_mtp_layers num_nextn_predict_layers"),
    # LUCID's: what these would do is written down nowhere.
    ("It is a variant of LUCID with tensors of its own", _off, "use_forget_gate"),
    ("It is a variant of LUCID whose code is not published", _zero, "key_scaling_exp"),
)
CHANGES: dict[str, tuple[str, Harmless]] = {key: (does, off) for does, off, keys in _CHANGES for key in keys.split()}
# LUCID's own way to say which layers are LUCID: refused without attention_type, and by families without windows.
LAYER_KEYS = ("layer_types", "lucid_layers", "sliding_window")
# These say nothing without another key, which is looked at.
WITH_OTHERS = frozenset(
    ("architectures", "max_window_layers", "model_type", "original_max_position_embeddings", "use_sliding_window")
)
KNOWN = COMPUTED | CHANGES.keys() | WITH_OTHERS | NO_EFFECT

ROPE_BLOCKS = ("rope_scaling", "rope_parameters")
# Keys of a rope block by its type; each takes ROPE_ALWAYS too.
ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
# Why other types are refused, where transformers has them.
ROPE_REASONS = dict.fromkeys(
    ("longrope", "su"),  # its first name
    " It has two sets of angles, and changes between them with the length of a text, which cached keys cannot.",
)
ROPE_ALWAYS = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")
_ROPE_CHANGES = (
    "alpha attention_factor beta_fast beta_slow factor full_attention high_freq_factor long_factor low_freq_factor "
    "mscale mscale_all_dim mrope_interleaved mrope_section short_factor sliding_attention truncate"
)
ROPE_CHANGES = frozenset(_ROPE_CHANGES.split())

"""Tables of all known keys of ``config.json``: supported, without effect, or refused by name.

An ignored key could change what the model computes, and no comparison of the export with our own reference would show
it. So a configuration is accepted only if each of its keys is in one of the tables here.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Collection
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import clipped
from lucid_deploy.model.config_file import ConfigFile
from lucid_deploy.model.families import Family, families, family_named, family_of

LUCID_TYPES = ("lucid", "oglucid")
ATTENTION_TYPES = (*LUCID_TYPES, "llama")
# Without attention_type the meaning of LUCID's own keys is unclear: the authors' code refuses such a configuration too.
LUCID_KEYS = ("which_rmsnorm", "use_rope", "use_beta", "use_qknorm", "use_forget_gate", "use_token_grad_clip")

COMPUTED = frozenset(ConfigFile.__struct_fields__)
# Keys that change no logits in evaluation mode, whatever their value.
_NO_EFFECT = {
    "describes the file": "_commit_hash _name_or_path _model_name_or_path dtype torch_dtype transformers_version "
    "unsloth_fixed unsloth_version",
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
    """Return whether a value is null, false, zero or empty."""
    return not value


def _one(value: Any) -> bool:
    return value is None or (value == 1 and value is not True)


def _zero(value: Any) -> bool:
    return value is None or (value == 0 and value is not False)


def _only(*values: Any) -> Harmless:
    return lambda value: value is None or value in values


def _all_are(wanted: Any) -> Harmless:
    return lambda value: value is None or (isinstance(value, list) and all(item == wanted for item in value))


# Keys known to change the numbers: their effect, a test for values without effect, and the keys.
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
    ("It rotates parts of each head by positions of their own", _off, "use_mrope"),
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
    # LUCID's; the effect of these is not published.
    ("It is a variant of LUCID with tensors of its own", _off, "use_forget_gate"),
    ("It is a variant of LUCID whose code is not published", _zero, "key_scaling_exp"),
)
CHANGES: dict[str, tuple[str, Harmless]] = {key: (does, off) for does, off, keys in _CHANGES for key in keys.split()}
# How a LUCID configuration names its LUCID layers; refused without attention_type, and by families without windows.
LAYER_KEYS = ("layer_types", "lucid_layers", "sliding_window")
# These have a meaning only together with another key, which is checked.
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
# Why other types of transformers are refused.
ROPE_REASONS = dict.fromkeys(
    ("longrope", "su"),  # its first name
    " It switches between two sets of angles with the length of a text, which cached keys cannot follow.",
)
ROPE_ALWAYS = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")
_ROPE_CHANGES = (
    "alpha attention_factor beta_fast beta_slow factor full_attention high_freq_factor long_factor low_freq_factor "
    "mscale mscale_all_dim mrope_interleaved mrope_section short_factor sliding_attention truncate"
)
ROPE_CHANGES = frozenset(_ROPE_CHANGES.split())


_SIMILAR = 0.8  # of difflib's ratio: one or two letters of a key's name


def check_keys(raw: dict[str, Any], where: str, assume_unused: Collection[str] = ()) -> Family:
    """Refuse a configuration unless each of its keys is supported or without effect; return its family.

    Args:
        raw: The content of ``config.json``.
        where: Name of the file, for messages.
        assume_unused: Unknown keys that the user declares to have no effect; in a rope block
            ``rope_scaling.key``.

    Raises:
        LucidError: An unsupported model, or unsupported or unknown keys; one error names all of them.
    """
    family = _check_family(raw, where)
    _check_assumed(where, assume_unused, family)
    _check_lucid_keys(raw, where, family)
    raw = family.normalized(raw, where)
    refused = [*_refused(raw, family), *_refused_rope(raw)]
    if refused:
        raise LucidError(
            f"{where}: {' '.join(refused)} The answers would be wrong without it. Remove a key from the file only if "
            "the model was trained without what it asks for."
        )
    unknown = sorted(unknown_keys(raw) - set(assume_unused))
    if unknown:
        raise LucidError(_unknown_message(raw, where, unknown))
    return family


def unknown_keys(raw: dict[str, Any]) -> set[str]:
    """Return the keys that are in no table; those inside a rope block as ``rope_scaling.key``."""
    inside = {f"{name}.{key}" for name, block in _rope_blocks(raw).items() for key in block if key not in _ROPE_KNOWN}
    return {*(raw.keys() - _known(raw)), *inside}


def _known(raw: dict[str, Any]) -> frozenset[str]:
    """Return the keys in the tables of all families and of the configuration's own family."""
    family = family_of(raw)
    return KNOWN if family is None else KNOWN | family.computed | family.ignored | family.refused.keys()


def value_of(raw: dict[str, Any], key: str) -> Any:
    """Return the value of a key, or of ``block.key`` inside a rope block."""
    outer, _, inner = key.partition(".")
    return raw[outer][inner] if outer in ROPE_BLOCKS and inner else raw[key]


_ROPE_KNOWN = frozenset((*ROPE_ALWAYS, *ROPE_CHANGES, "partial_rotary_factor"))


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
        also = "".join(f" {refusal}" for refusal in _refused(raw, family_named("llama")))
        hint = f'{_classes_hint()} If it is Llama in all but name, set model_type to "llama" and architectures to '
        hint += '["LlamaForCausalLM"].'
        raise LucidError(
            f"{where}: model_type {kind!r}{of} is not supported; supported are {', '.join(families())}. Its own code "
            f"may compute something else from the same tensors.{also or hint}"
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


def _classes_hint() -> str:
    if importlib.util.find_spec("transformers") is None:
        return " Other families need transformers, which the extra export brings."
    return " transformers has no causal language model of that name."


def _check_lucid_keys(raw: dict[str, Any], where: str, family: Family) -> None:
    """Refuse unknown attention types, and LUCID's keys without ``attention_type``, as the authors' code does."""
    attention = raw.get("attention_type")
    if attention is not None and attention not in ATTENTION_TYPES:
        raise LucidError(
            f"{where}: attention_type {attention!r} is not supported; supported are {', '.join(ATTENTION_TYPES)}."
        )
    found = [key for key in LUCID_KEYS if raw.get(key) is not None and key not in family.computed]
    if found and attention is None:
        near = difflib.get_close_matches("attention_type", raw.keys() - KNOWN, 1, _SIMILAR)
        hint = f" Is {near[0]} a misspelling of it?" if near else ""
        raise LucidError(
            f"{where}: attention_type is missing, beside {', '.join(found)} of LUCID's configuration.{hint} Set it to "
            "lucid, or to llama for standard attention."
        )


def _refused(raw: dict[str, Any], family: Family) -> list[str]:
    found = []
    own = {*family.computed, *family.ignored, *_layer_keys(raw)}
    for key, value in {**family.defaults, **raw}.items():
        if key in CHANGES and key not in own and not _has_no_effect(raw, key, value):
            state = f"{key} is {_shown(value)}" if key in raw else f"{key} is missing, which means {value}"
            found.append(f"{state}. {CHANGES[key][0]}, which is not supported.")
    return found + [
        f"{key} is {_shown(raw[key])}. {reason}, so it is not supported."
        for key, reason in family.refused.items()
        if raw.get(key)
    ]


def _layer_keys(raw: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys that say which layers are LUCID; with LUCID every family supports them."""
    if raw.get("attention_type") not in LUCID_TYPES:
        return ()
    return LAYER_KEYS if raw.get("layer_types") else ("lucid_layers",)


def _has_no_effect(raw: dict[str, Any], key: str, value: Any) -> bool:
    unused = key == "sliding_window" and raw.get("use_sliding_window") is False
    return unused or CHANGES[key][1](value)


def _refused_rope(raw: dict[str, Any]) -> list[str]:
    found, blocks = [], _rope_blocks(raw)
    if len(blocks) == 2 and blocks["rope_scaling"] != blocks["rope_parameters"]:
        found.append(
            "rope_scaling and rope_parameters differ. It is unclear which of them counts, so this is not supported."
        )
    for name, block in blocks.items():
        kind = block.get("rope_type") or block.get("type") or "default"
        if block.get("type") not in (None, kind):
            found.append(f"{name} has rope_type {kind!r} and type {block['type']!r}, which is not supported.")
        if isinstance(kind, str) and kind in ROPE_KEYS:  # others are refused where the block is read
            found += [
                f"{name}.{key} is {_shown(value)}. rope_type {kind} has no such setting, so it is not supported."
                for key, value in block.items()
                if value is not None and key in ROPE_CHANGES and key not in ROPE_KEYS[kind]
            ]
        if kind == "yarn" and block.get("truncate", True) is None:
            found.append(
                f"{name}.truncate is null, which transformers reads as false in some families and as true in others. "
                "Set it to true or false."
            )
        does, harmless = CHANGES["partial_rotary_factor"]
        if not harmless(block.get("partial_rotary_factor")):
            found.append(
                f"{name}.partial_rotary_factor is {block['partial_rotary_factor']!r}. {does}, which is not supported."
            )
        original = raw.get("original_max_position_embeddings")  # transformers lets it win over the block's
        if original is not None and original != block.get("original_max_position_embeddings", original):
            found.append(
                f"original_max_position_embeddings is {original!r}, and another in {name}, which is not supported."
            )
    return found


def _unknown_message(raw: dict[str, Any], where: str, unknown: list[str]) -> str:
    named = [f"{clipped(key)} is {_shown(value_of(raw, key))}{_likely(key, _known(raw))}" for key in unknown]
    they = "This key is" if len(unknown) == 1 else "These keys are"
    way = " ".join(f"--assume-unused {clipped(key)}" for key in unknown)
    return (
        f"{where}: {'; '.join(named)}. {they} not known here, and if the model's own code computes something from it, "
        f"the answers would be wrong. Correct a misspelling; if that code leaves it unused, export with {way}"
    )


def _likely(key: str, known: frozenset[str]) -> str:
    """Return a hint with the known key that is spelled alike."""
    outer, _, inner = key.partition(".")
    inside = outer in ROPE_BLOCKS and inner
    near = difflib.get_close_matches(inner if inside else key, _ROPE_KNOWN if inside else known, 1, _SIMILAR)
    return f" (is {near[0]} meant?)" if near else ""


def _shown(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"

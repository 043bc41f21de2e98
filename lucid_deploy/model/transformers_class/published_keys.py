"""Keys of published ``config.json`` files that a transformers class does not read, although it computes what they say.

Most are left over from a model's original code. Only values that match the class's behaviour are listed; others are
refused. Keys that have no effect on results are accepted with any value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Keys that are read as rope_parameters or by this package, name the model's code, or are redundant with layer_types.
_ELSEWHERE = frozenset(
    (
        *("auto_map", "rope_theta", "rope_scaling", "architectures", "model_type", "max_window_layers"),
        *("bos_token_id", "eos_token_id"),
    )
)
_BIASES = ("attention_bias", "mlp_bias")  # if a class does not read them, false is accepted: stored names show biases
_ALSO_CALLED = {  # keys that duplicate another key and must have its value
    "attention_head_dim": "head_dim",
    "experts_per_token": "num_experts_per_tok",
    "hidden_act": "hidden_activation",
    "layer_norm_epsilon": "norm_epsilon",
}
_ROPE_CALLED = {"initial_context_length": "original_max_position_embeddings", "rope_percent": "partial_rotary_factor"}
_TOKENS_OF_HUNYUAN = (
    "eod_token_id im_end_id im_newline_id im_start_id mask_init_id org_vocab_size pad_id text_end_id text_start_id"
)
_HUNYUAN: dict[str, tuple[Any, ...]] = {
    **{"add_classification_head": (False,), "class_num": (0,), "norm_type": ("rms",), "pool_type": ("last",)},
    **{"use_cla": (False,), "use_qk_norm": (True,), "use_rotary_pos_emb": (True,)},
}
_QWEN: dict[str, tuple[Any, ...]] = {"attn_output_gate": (True,), "output_gate_type": ("swish", "silu")}
_QWEN["use_sliding_window"] = (False,)
# By model_type: the values that the class computes.
_COMPUTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "apertus": {"post_norm": (False,), "qk_norm": (True,)},
    "cohere2": {
        **{"order_of_interleaved_layers": ("local_attn_first",), "position_embedding_type": ("rope_gptj",)},
        **{"use_embedding_sharing": (True,), "use_gated_activation": (True,), "use_parallel_block": (True,)},
        "use_parallel_embedding": (True, False),  # whether training sharded the embedding
    },
    "deepseek_v3": {"moe_layer_freq": (1,), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    "hunyuan_v1_dense": _HUNYUAN,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _QWEN),
    "starcoder2": {
        **{
            "activation_function": ("gelu",),  # duplicates hidden_act
            "mlp_type": ("default",),
            "norm_type": ("layer_norm",),
        },
        **{"attention_softmax_in_fp32": (True,), "scale_attention_softmax_in_fp32": (True,)},
    },
}
# Keys for the state type of serving engines, and for multi-token prediction heads.
_OF_QWEN3_5 = frozenset(("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"))
# By model_type: keys that the class does not read and that do not affect its results, whatever their value.
_UNUSED: dict[str, frozenset[str]] = {
    "qwen3_next": _OF_QWEN3_5,
    "qwen3_5_text": _OF_QWEN3_5,
    "qwen3_5_moe_text": _OF_QWEN3_5 | {"intermediate_size"},  # every MLP has experts
    "hunyuan_v1_dense": frozenset(
        (*_TOKENS_OF_HUNYUAN.split(), "cla_share_factor", "dense_list")  # only for use_cla and for classifiers
    ),
}
ALSO_NAMED = {"ernie4_5": "Ernie4_5_ForCausalLM"}  # by model_type: another name of its class in published files


def is_computed(key: str, value: Any, config: Any) -> bool | None:
    """Whether a class computes what a key that it does not read says; None: the key is unknown."""
    kind, rope = config.model_type, getattr(config, "rope_parameters", None) or {}
    if key in _ELSEWHERE or key in _UNUSED.get(kind, ()) or (key in _BIASES and value is False):
        return True
    if key in _ALSO_CALLED and hasattr(config, _ALSO_CALLED[key]):
        return _equal(value, getattr(config, _ALSO_CALLED[key]))
    if key in _ROPE_CALLED:
        return _equal(value, rope.get(_ROPE_CALLED[key]))
    check = _CHECKED.get((kind, key))
    if check is not None:
        return check(value, config)
    values = _COMPUTED.get(kind, {}).get(key)
    return None if values is None else any(_equal(value, each) for each in values)


def _equal(value: Any, other: Any) -> bool:
    return value is not None and value == other and isinstance(value, bool) == isinstance(other, bool)


def _every(value: Any, config: Any) -> bool:
    """Whether every ``value``-th layer attends to all tokens, and no other layer does."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return False
    return all((kind == "full_attention") == (not place % value) for place, kind in enumerate(config.layer_types, 1))


_CHECKED: dict[tuple[str, str], Callable[[Any, Any], bool]] = {("cohere2", "layer_switch"): _every}

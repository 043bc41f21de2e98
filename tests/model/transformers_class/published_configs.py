"""What ``config.json`` of published checkpoints has, with small sizes: keys that their classes do not declare, too."""

from __future__ import annotations

from typing import Any

# By the names that all of them have; a configuration gets those that it has published.
_SIZES: dict[str, Any] = {
    **dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    **dict(vocab_size=64, head_dim=16, sliding_window=8, moe_intermediate_size=32, shared_expert_intermediate_size=32),
    **dict(num_experts=8, num_local_experts=8, n_routed_experts=8, moe_num_experts=8, num_experts_per_tok=2),
    **dict(moe_k=2, shared_intermediate_size=32, n_group=2, topk_group=1, first_k_dense_replace=1),
    **dict(bos_token_id=1, eos_token_id=2, pad_token_id=None),
}
_LATENT = dict(q_lora_rank=24, kv_lora_rank=20, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12)
_ALL = (
    "architectures attention_dropout bos_token_id eos_token_id hidden_act hidden_size initializer_range "
    "intermediate_size max_position_embeddings model_type num_attention_heads num_hidden_layers num_key_value_heads "
    "rope_theta tie_word_embeddings torch_dtype transformers_version use_cache vocab_size"
)
_GIVEN: dict[str, Any] = {
    **dict(attention_dropout=0.0, hidden_act="silu", initializer_range=0.02, max_position_embeddings=4096),
    **dict(rope_theta=1e6, tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.51.0"),
    **dict(use_cache=True, num_key_value_heads=2),
}
_QWEN = dict(max_window_layers=28, rms_norm_eps=1e-6, sliding_window=None, use_sliding_window=False)
_LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn"}
_YARN |= {"original_max_position_embeddings": 4096}
_GPT_OSS_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn", "truncate": False}
_GPT_OSS_YARN |= {"original_max_position_embeddings": 4096}
_CODE = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
_FULL, _WINDOW = "full_attention", "sliding_attention"
_DEEPSEEK: dict[str, Any] = {
    **dict(attention_bias=False, auto_map=_CODE, aux_loss_alpha=0.001, ep_size=1, moe_layer_freq=1, n_shared_experts=1),
    **dict(norm_topk_prob=True, num_nextn_predict_layers=1, pretraining_tp=1, rms_norm_eps=1e-6, seq_aux=True),
    **dict(routed_scaling_factor=2.5, rope_scaling=_YARN, n_group=2, topk_group=1, n_routed_experts=8),
    **dict(first_k_dense_replace=1, moe_intermediate_size=32, num_experts_per_tok=2, num_key_value_heads=4),
    **_LATENT,
}
# By the repository on the Hub: the class, and what it has beside the keys that all have.
_DELTA: dict[str, Any] = dict(full_attention_interval=4, linear_conv_kernel_dim=4, linear_key_head_dim=8)
_DELTA |= dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_value_head_dim=8)
_QUARTER = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-3.1-8B": (
        "LlamaForCausalLM llama",
        dict(attention_bias=False, mlp_bias=False, pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=_LLAMA3),
    ),
    "Qwen/Qwen2.5-7B": ("Qwen2ForCausalLM qwen2", {**_QWEN, "use_mrope": False}),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        "Qwen2MoeForCausalLM qwen2_moe",
        dict(
            **{**_QWEN, "max_window_layers": 21},
            **dict(decoder_sparse_step=1, moe_intermediate_size=32, norm_topk_prob=False, num_experts=8),
            **dict(num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.001),
            shared_expert_intermediate_size=32,
        ),
    ),
    "Qwen/Qwen3-8B": (
        "Qwen3ForCausalLM qwen3",
        dict(**_QWEN, attention_bias=False, head_dim=16, rope_scaling=None),
    ),
    "Qwen/Qwen3-30B-A3B": (
        "Qwen3MoeForCausalLM qwen3_moe",
        dict(
            **{**_QWEN, "max_window_layers": 48},
            **dict(attention_bias=False, decoder_sparse_step=1, head_dim=16, mlp_only_layers=[], norm_topk_prob=True),
            **dict(moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2, output_router_logits=False),
            **dict(rope_scaling=None, router_aux_loss_coef=0.001),
        ),
    ),
    "mistralai/Mistral-7B-v0.3": (
        "MistralForCausalLM mistral",
        dict(head_dim=16, rms_norm_eps=1e-5, sliding_window=None),
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        "MixtralForCausalLM mixtral",
        dict(num_experts_per_tok=2, num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-5)
        | dict(router_aux_loss_coef=0.02, sliding_window=None),
    ),
    "mistralai/Ministral-8B-Instruct-2410": (
        "MistralForCausalLM mistral",
        dict(head_dim=16, rms_norm_eps=1e-5, sliding_window=8),
    ),
    "google/gemma-2b": (
        "GemmaForCausalLM gemma",
        dict(attention_bias=False, head_dim=16, hidden_act="gelu", hidden_activation=None, rms_norm_eps=1e-6)
        | dict(rope_scaling=None, pad_token_id=0),
    ),
    "google/gemma-2-2b": (
        "Gemma2ForCausalLM gemma2",
        dict(attention_bias=False, attn_logit_softcapping=50.0, cache_implementation="hybrid", head_dim=16)
        | dict(final_logit_softcapping=30.0, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh")
        | dict(query_pre_attn_scalar=256, rms_norm_eps=1e-6, sliding_window=8, pad_token_id=0),
    ),
    "google/gemma-3-1b-pt": (
        "Gemma3ForCausalLM gemma3_text",
        dict(attention_bias=False, attn_logit_softcapping=None, cache_implementation="hybrid", head_dim=16)
        | dict(final_logit_softcapping=None, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256)
        | dict(rms_norm_eps=1e-6, rope_local_base_freq=10000, rope_scaling=None, sliding_window=8, pad_token_id=0)
        | dict(sliding_window_pattern=6, hidden_act=None),
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        "Phi3ForCausalLM phi3",
        dict(attention_bias=False, auto_map=_CODE, embd_pdrop=0.0, original_max_position_embeddings=4096)
        | dict(resid_pdrop=0.0, rms_norm_eps=1e-5, rope_scaling=None, sliding_window=8, pad_token_id=0),
    ),
    "microsoft/phi-4": (
        "Phi3ForCausalLM phi3",
        dict(attention_bias=False, embd_pdrop=0.0, original_max_position_embeddings=4096, resid_pdrop=0.0)
        | dict(rms_norm_eps=1e-5, rope_scaling=None, sliding_window=None, pad_token_id=0),
    ),
    "microsoft/phi-2": (
        "PhiForCausalLM phi",
        dict(embd_pdrop=0.0, hidden_act="gelu_new", layer_norm_eps=1e-5, partial_rotary_factor=0.5)
        | dict(qk_layernorm=False, resid_pdrop=0.1, rope_scaling=None),
    ),
    "allenai/OLMo-1B-hf": (
        "OlmoForCausalLM olmo",
        dict(attention_bias=False, clip_qkv=None, pretraining_tp=1, rope_scaling=None),
    ),
    "allenai/OLMo-2-1124-7B": (
        "Olmo2ForCausalLM olmo2",
        dict(attention_bias=False, rms_norm_eps=1e-6, rope_scaling=None),
    ),
    "allenai/OLMo-3-1025-7B": (
        "Olmo3ForCausalLM olmo3",
        dict(attention_bias=False, layer_types=[_WINDOW, _FULL], rms_norm_eps=1e-6, sliding_window=8)
        | dict(rope_scaling={**_YARN, "rope_type": "yarn", "attention_factor": 1.2079441541679836}),
    ),
    "allenai/OLMoE-1B-7B-0924": (
        "OlmoeForCausalLM olmoe",
        dict(attention_bias=False, clip_qkv=None, norm_topk_prob=False, num_experts=8, num_experts_per_tok=2)
        | dict(output_router_logits=False, rms_norm_eps=1e-5, rope_scaling=None, router_aux_loss_coef=0.01),
    ),
    "ibm-granite/granite-3.1-8b-base": (
        "GraniteForCausalLM granite",
        dict(attention_bias=False, attention_multiplier=0.0078125, embedding_multiplier=12.0, logits_scaling=16.0)
        | dict(mlp_bias=False, residual_multiplier=0.22, rms_norm_eps=1e-5, rope_scaling=None, pad_token_id=0),
    ),
    "ibm-granite/granite-3.1-3b-a800m-base": (
        "GraniteMoeForCausalLM granitemoe",
        dict(attention_bias=False, attention_multiplier=0.015625, embedding_multiplier=12.0, logits_scaling=6.0)
        | dict(num_experts_per_tok=2, num_local_experts=8, output_router_logits=False, residual_multiplier=0.22)
        | dict(rms_norm_eps=1e-6, rope_scaling=None, router_aux_loss_coef=0.0, pad_token_id=0),
    ),
    "deepseek-ai/DeepSeek-V3": (
        "DeepseekV3ForCausalLM deepseek_v3",
        dict(**_DEEPSEEK, scoring_func="sigmoid", topk_method="noaux_tc"),
    ),
    "openai/gpt-oss-20b": (
        "GptOssForCausalLM gpt_oss",
        dict(attention_bias=True, experts_per_token=2, head_dim=16, initial_context_length=4096)
        | dict(layer_types=[_WINDOW, _FULL], num_experts_per_tok=2, num_local_experts=8, output_router_logits=False)
        | dict(rms_norm_eps=1e-5, rope_scaling=_GPT_OSS_YARN, router_aux_loss_coef=0.9, sliding_window=8)
        | dict(swiglu_limit=7.0, pad_token_id=0),
    ),
    "THUDM/GLM-4-9B-0414": (
        "Glm4ForCausalLM glm4",
        dict(attention_bias=False, head_dim=16, partial_rotary_factor=0.5, rms_norm_eps=1e-5, pad_token_id=0),
    ),
    "zai-org/GLM-4.5-Air": (
        "Glm4MoeForCausalLM glm4_moe",
        dict(attention_bias=True, first_k_dense_replace=1, head_dim=16, moe_intermediate_size=32, n_group=1)
        | dict(n_routed_experts=8, n_shared_experts=1, norm_topk_prob=True, num_experts_per_tok=2, topk_group=1)
        | dict(num_nextn_predict_layers=1, partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_scaling=None)
        | dict(routed_scaling_factor=1.0, use_qk_norm=False, pad_token_id=0),
    ),
    "CohereForAI/c4ai-command-r-v01": (
        "CohereForCausalLM cohere",
        dict(attention_bias=False, layer_norm_eps=1e-5, logit_scale=0.0625, model_max_length=4096, pad_token_id=0)
        | dict(pretraining_tp=1, use_qk_norm=False, rope_scaling=None, tie_word_embeddings=True),
    ),
    "CohereForAI/c4ai-command-r7b-12-2024": (
        "Cohere2ForCausalLM cohere2",
        dict(attention_bias=False, cache_implementation="hybrid", head_dim=16, layer_norm_eps=1e-5, logit_scale=0.25)
        | dict(layer_switch=4, order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj")
        | dict(rope_scaling=None, rotary_pct=1.0, sliding_window=8, sliding_window_pattern=4, pad_token_id=0)
        | dict(use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True)
        | dict(use_parallel_embedding=True, tie_word_embeddings=True),
    ),
    "stabilityai/stablelm-2-1_6b": (
        "StableLmForCausalLM stablelm",
        dict(layer_norm_eps=1e-5, partial_rotary_factor=0.25, use_qkv_bias=True, qk_layernorm=False)
        | dict(rope_scaling=None, use_parallel_residual=False, hidden_dropout=0.0),
    ),
    "bigcode/starcoder2-3b": (
        "Starcoder2ForCausalLM starcoder2",
        dict(activation_function="gelu", attention_softmax_in_fp32=True, embedding_dropout=0.1, layer_norm_epsilon=1e-5)
        | dict(hidden_act="gelu_pytorch_tanh", mlp_type="default", norm_epsilon=1e-5, norm_type="layer_norm")
        | dict(residual_dropout=0.1, scale_attention_softmax_in_fp32=True, scale_attn_weights=True, sliding_window=8)
        | dict(use_bias=True),
    ),
    "HuggingFaceTB/SmolLM3-3B": (
        "SmolLM3ForCausalLM smollm3",
        dict(attention_bias=False, layer_types=[_FULL] * 2, max_window_layers=28, mlp_bias=False, no_rope_layers=[1, 0])
        | dict(no_rope_layer_interval=4, pretraining_tp=2, rms_norm_eps=1e-6, rope_scaling=None, sliding_window=None)
        | dict(use_sliding_window=False, pad_token_id=0),
    ),
    "ByteDance-Seed/Seed-OSS-36B-Instruct": (
        "SeedOssForCausalLM seed_oss",
        dict(attention_bias=True, attention_dropout=0.1, attention_out_bias=False, head_dim=16, mlp_bias=False)
        | dict(residual_dropout=0.1, rms_norm_eps=1e-6, rope_scaling={"rope_type": "default"}, pad_token_id=1),
    ),
    "baidu/ERNIE-4.5-0.3B-PT": (
        "Ernie4_5_ForCausalLM ernie4_5",
        dict(auto_map=_CODE, head_dim=16, rms_norm_eps=1e-5, use_bias=False, pad_token_id=0, tie_word_embeddings=True),
    ),
    "tencent/Hunyuan-1.8B-Instruct": (
        "HunYuanDenseV1ForCausalLM hunyuan_v1_dense",
        dict(add_classification_head=False, attention_bias=False, attention_head_dim=16, cla_share_factor=2)
        | dict(
            class_num=0, dense_list=[64, 0], eod_token_id=3, head_dim=16, im_end_id=4, im_newline_id=5, im_start_id=6
        )
        | dict(mask_init_id=7, mlp_bias=False, norm_type="rms", org_vocab_size=64, pad_id=-1, pad_token_id=-1)
        | dict(pool_type="last", pretraining_tp=1, rms_norm_eps=1e-5, sep_token_id=8, text_end_id=9, text_start_id=10)
        | dict(rope_scaling={"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "type": "dynamic"})
        | dict(use_cla=False, use_qk_norm=True, use_rotary_pos_emb=True, tie_word_embeddings=True),
    ),
    "nvidia/Minitron-4B-Base": (
        "NemotronForCausalLM nemotron",
        dict(attention_bias=False, head_dim=16, hidden_act="relu2", mlp_bias=False, norm_eps=1e-5)
        | dict(partial_rotary_factor=0.5, rope_scaling=None, rope_percent=0.5),
    ),
    "swiss-ai/Apertus-8B-2509": (
        "ApertusForCausalLM apertus",
        dict(attention_bias=False, hidden_act="xielu", mlp_bias=False, post_norm=False, qk_norm=True)
        | dict(rms_norm_eps=1e-5, rope_scaling=_LLAMA3, pad_token_id=3),
    ),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": (
        "Exaone4ForCausalLM exaone4",
        dict(attention_bias=False, head_dim=16, layer_types=[_FULL] * 2, rms_norm_eps=1e-5, rope_scaling=_LLAMA3)
        | dict(sliding_window=None, sliding_window_pattern=None, pad_token_id=0),
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        "Qwen3NextForCausalLM qwen3_next",
        dict(attention_bias=False, head_dim=16, rms_norm_eps=1e-6, rope_scaling=None, use_sliding_window=False)
        | _DELTA
        | dict(decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=32, norm_topk_prob=True, num_experts=8)
        | dict(num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.001, num_hidden_layers=4)
        | dict(partial_rotary_factor=0.25, shared_expert_intermediate_size=32),
    ),
    "Qwen/Qwen3.5-4B": (  # its text part
        "Qwen3_5ForCausalLM qwen3_5_text",
        dict(attention_bias=False, head_dim=16, rms_norm_eps=1e-6, num_hidden_layers=4, attn_output_gate=True)
        | _DELTA
        | dict(layer_types=["linear_attention"] * 3 + [_FULL], mamba_ssm_dtype="float32", output_gate_type="swish")
        | dict(mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False)
        | dict(rope_parameters={"mrope_interleaved": True, "mrope_section": [1, 1, 0], **_QUARTER}),
    ),
    "arcee-ai/AFM-4.5B": (
        "ArceeForCausalLM arcee",
        dict(attention_bias=False, head_dim=16, hidden_act="relu2", mlp_bias=False, rms_norm_eps=1e-5)
        | dict(rope_scaling={**_GPT_OSS_YARN, "truncate": True, "mscale": 1.0}),
    ),
}


def published_config(name: str) -> dict[str, Any]:
    """Return the configuration of a checkpoint on the Hub, with small sizes."""
    form, kind = PUBLISHED[name][0].split()
    raw = {key: _GIVEN.get(key, _SIZES.get(key)) for key in _ALL.split()}
    whole = {**raw, "architectures": [form], "model_type": kind, **PUBLISHED[name][1]}
    return {key: value for key, value in whole.items() if key != "hidden_act" or value}

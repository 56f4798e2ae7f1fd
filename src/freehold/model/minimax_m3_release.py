"""config.json of MiniMax-M3's text model, with the release's keys."""

from __future__ import annotations

from typing import Any

from freehold.model.minimax_m3_config import MiniMaxM3Config

_FLAGS = [0] * 3 + [1] * 57

M3_TEXT: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForCausalLM"],
    "model_type": "minimax_m3_vl_text",
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072,
    "num_hidden_layers": 60,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 200064,
    "max_position_embeddings": 1048576,
    "rms_norm_eps": 1e-6,
    "use_gemma_norm": True,
    "rope_theta": 5000000.0,
    "rotary_dim": 64,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "routed_scaling_factor": 2.0,
    "moe_layer_freq": _FLAGS,
    "hidden_act": "swigluoai",
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "use_qk_norm": True,
    "qk_norm_type": "per_head",
    "attention_output_gate": False,
    "tie_word_embeddings": False,
    "sparse_attention_config": {
        "use_sparse_attention": True,
        "sparse_index_dim": 128,
        "sparse_num_index_heads": 4,
        "sparse_topk_blocks": 16,
        "sparse_block_size": 128,
        "sparse_score_type": "max",
        "sparse_init_block": 0,
        "sparse_local_block": 1,
        "sparse_attention_freq": _FLAGS,
        "sparse_disable_index_value": _FLAGS,
    },
}
"""The text part of the published configuration."""


def release_config(c: MiniMaxM3Config) -> dict[str, Any]:
    """config.json of the text model alone, with the release's keys."""
    sparse = [int(is_sparse) for is_sparse in c.sparse_attention]
    return {
        **M3_TEXT,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": c.tie_embeddings,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.expert_intermediate_size,
        "dense_intermediate_size": c.dense_intermediate_size,
        "shared_intermediate_size": c.shared_intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_q_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rotary_dim": c.rotary_dim,
        "num_local_experts": c.num_experts,
        "num_experts_per_tok": c.num_experts_per_token,
        "routed_scaling_factor": c.routed_scaling_factor,
        "swiglu_alpha": c.swiglu_alpha,
        "swiglu_limit": c.swiglu_limit,
        "moe_layer_freq": [int(is_moe) for is_moe in c.moe],
        "sparse_attention_config": {
            **M3_TEXT["sparse_attention_config"],
            "sparse_index_dim": c.index_dim,
            "sparse_num_index_heads": c.num_index_heads,
            "sparse_topk_blocks": c.topk,
            "sparse_block_size": c.block_tokens,
            "sparse_init_block": c.init_blocks,
            "sparse_local_block": c.local_blocks,
            "sparse_attention_freq": sparse,
            "sparse_disable_index_value": sparse,
        },
    }

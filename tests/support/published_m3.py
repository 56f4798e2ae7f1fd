"""The published configuration of MiniMax-M3, key by key, and what is known of its files."""

from __future__ import annotations

from typing import Any

LAYERS, LEAD = 60, 3

PARAMETERS = 427_040_140_160
PAYLOAD_BYTES = 854_172_958_720
NUM_TENSORS = 23_416
MXFP8_TENSORS = 45_838
MXFP8_GIB = 413.27

BY_PART = {
    "embeddings": 1_229_193_216,
    "attention": 6_417_300_480,
    "index": 224_147_712,
    "router": 44_833_920,
    "routed experts": 413_122_166_784,
    "shared experts": 3_227_516_928,
    "dense MLP": 679_477_248,
    "norms": 737_280 + 6_144,
    "head": 1_229_193_216,
    "vision": 629_680_640 + 1_505_280 + 45_625_344 + 188_755_968,
}
ACTIVE_WITHOUT_NORMS = 24_732_537_216
"""A text token's, without the input embedding and the norms before each layer's two parts."""


def _layers(lead: int, rest: int) -> list[int]:
    return [lead] * LEAD + [rest] * (LAYERS - LEAD)


def text_config() -> dict[str, Any]:
    """The object under text_config; also what a text-only repository would have."""
    return {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "hidden_size": 6144,
        "intermediate_size": 3072,
        "dense_intermediate_size": 12288,
        "shared_intermediate_size": 3072,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 200064,
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-6,
        "use_gemma_norm": True,
        "rope_theta": 5000000.0,
        "rotary_dim": 64,
        "partial_rotary_factor": 0.5,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "routed_scaling_factor": 2.0,
        "moe_layer_freq": _layers(0, 1),
        "hidden_act": "swigluoai",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "attention_output_gate": False,
        "tie_word_embeddings": False,
        "num_mtp_modules": 7,
        "num_nextn_predict_layers": 1,
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_index_dim": 128,
            "sparse_num_index_heads": 4,
            "sparse_topk_blocks": 16,
            "sparse_block_size": 128,
            "sparse_score_type": "max",
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_attention_freq": _layers(0, 1),
            "sparse_disable_index_value": _layers(0, 1),
        },
    }


def full_config() -> dict[str, Any]:
    """config.json of the BF16 repository."""
    merge = {"image_token_compression_method": "patch_merge", "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_minimax_m3_vl.MiniMaxM3VLConfig"},
        "model_type": "minimax_m3_vl",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
        "image_token_index": 200025,
        "video_token_index": 200026,
        "image_seq_length": 576,
        "process_image_mode": "dynamic_res",
        "projector_hidden_act": "gelu",
        "projector_hidden_size": 6144,
        "multimodal_projector_bias": True,
        "num_reward_heads": 0,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "img_token_compression_config": merge,
        "text_config": text_config(),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1280,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "intermediate_size": 5120,
            "patch_size": 14,
            "image_size": 2016,
            "num_channels": 3,
            "projection_dim": 6144,
            "position_embedding_type": "rope",
            "rope_mode": "3d",
            "rope_theta": 10000.0,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "attention_dropout": 0.0,
            "vision_segment_max_frames": 4,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "vocab_size": 32000,
            "img_token_compression_config": merge,
        },
    }


def mxfp8_config() -> dict[str, Any]:
    """config.json of the MXFP8 repository."""
    gates = [f"language_model.model.layers.{i}.block_sparse_moe.gate" for i in range(LEAD, LAYERS)]
    kept = ["lm_head", "model.embed_tokens", "vision_tower", "multi_modal_projector", "patch_merge_mlp"]
    return {
        **full_config(),
        "quantization_config": {
            "quant_method": "mxfp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [1, 32],
            "ignored_layers": kept + gates,
        },
    }

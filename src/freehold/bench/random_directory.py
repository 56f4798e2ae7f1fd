"""The random MiniMax-M3 of the suites as a directory of safetensors, for programs that read only such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from freehold.bench.random_m3 import BENCH_M3
from freehold.bench.slice_checkpoint import M3_TEXT, layer, outside
from freehold.model.minimax_m3_config import MiniMaxM3Config

_END = "[e~["


def write_random_directory(path: Path, config: MiniMaxM3Config = BENCH_M3) -> None:
    """Writes it with matrices in bfloat16; norms, routers and their biases are float32."""
    path.mkdir(parents=True, exist_ok=True)
    values = release_config(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for part in (outside(values), *(layer(values, i) for i in range(config.num_layers))):
        for name, (shape, kind) in part.items():
            scale = 0.1 if len(shape) == 1 else 1.0 if name.endswith("embed_tokens.weight") else 1.5 / shape[1] ** 0.5
            tensor = torch.randn(shape, generator=generator) * scale
            tensors[name] = tensor if kind == "F32" else tensor.bfloat16()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    _bytes_tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": _END}), encoding="utf-8")


def release_config(c: MiniMaxM3Config) -> dict[str, Any]:
    """config.json of the text model alone, with the release's keys."""
    sparse = [int(is_sparse) for is_sparse in c.sparse_attention]
    return {
        **M3_TEXT,
        "torch_dtype": "bfloat16",
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


def _bytes_tokenizer() -> Tokenizer:
    """One token for each byte, and the one that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    return tokenizer

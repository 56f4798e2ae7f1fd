"""Small models in M3's shape, to be trained where people sit."""

from __future__ import annotations

from dataclasses import replace

from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.training.retrieval_rows import RetrievalWords

BYTES = 257
"""Tokens of `bytes_tokenizer` without words."""

SMALL = MiniMaxM3Config(
    vocab_size=BYTES,
    hidden_size=256,
    num_layers=4,
    num_q_heads=8,
    num_kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    context_length=2**20,
    dense_intermediate_size=512,
    expert_intermediate_size=128,
    shared_intermediate_size=128,
    num_experts=8,
    num_experts_per_token=2,
    routed_scaling_factor=2.0,
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
    index_dim=32,
    num_index_heads=2,
    block_tokens=32,
    topk=8,
    local_blocks=1,
    init_blocks=0,
    sparse_attention=(False, True, True, True),
    moe=(False, True, True, True),
    tie_embeddings=False,
)
"""About three million weights over bytes; the first layer dense, as in M3."""

RETRIEVAL_WORDS = RetrievalWords(first=BYTES, names=128, values=64, noise=256)

RETRIEVAL = replace(
    SMALL,
    vocab_size=BYTES + RETRIEVAL_WORDS.count,
    hidden_size=128,
    num_layers=2,
    num_q_heads=4,
    rope_theta=10.0,
    rotary_dim=8,
    block_tokens=16,
    topk=8,
    local_blocks=2,
    sparse_attention=(True, True),
    moe=(False, True),
    expert_intermediate_size=128,
    dense_intermediate_size=256,
    tie_embeddings=True,
)
"""Sparse in every layer: a dense one would cost hours at a million tokens. The slowest of four rotations takes
35 tokens, so that rows of 512 show nearly every combination of angles: none is new in longer texts."""

SHAPES = {"small": SMALL, "retrieval": RETRIEVAL}

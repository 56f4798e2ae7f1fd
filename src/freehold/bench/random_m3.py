"""A small MiniMax-M3 with random weights, for suites whose figures do not depend on what a model says."""

from __future__ import annotations

import hashlib
from typing import cast

import torch

from freehold.core.config import EngineConfig
from freehold.engine.engine import Engine
from freehold.model.compute import compute_for
from freehold.model.layers import Linear, RMSNorm
from freehold.model.minimax_m3 import MiniMaxM3, MixtureOfExperts
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.tokenizer import Tokenizer

_LAYERS = 4

BENCH_M3 = MiniMaxM3Config(
    vocab_size=4096,
    hidden_size=512,
    num_layers=_LAYERS,
    num_q_heads=16,
    num_kv_heads=4,
    head_dim=64,
    rotary_dim=32,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    context_length=2**20,
    dense_intermediate_size=1024,
    expert_intermediate_size=256,
    shared_intermediate_size=256,
    num_experts=8,
    num_experts_per_token=2,
    routed_scaling_factor=2.0,
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
    index_dim=128,
    num_index_heads=4,
    block_tokens=128,
    topk=16,
    local_blocks=1,
    init_blocks=0,
    sparse_attention=(False, *(True,) * (_LAYERS - 1)),
    moe=(False, *(True,) * (_LAYERS - 1)),
    tie_embeddings=False,
)
"""M3's blocks, index and context; widths and layers that a laptop computes in milliseconds."""


class Letters:
    """A tokenizer's place: every token is the same letter."""

    eos_ids: frozenset[int] = frozenset()
    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, _token_id: int) -> bytes:
        return b"x"


def random_m3(config: MiniMaxM3Config = BENCH_M3, *, seed: int = 0) -> MiniMaxM3:
    """The model with weights from `seed`, computed by the native kernels."""
    model = MiniMaxM3(config, compute_for("native")[0])
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            dim = config.hidden_size
            if name.endswith(("q_norm", "k_norm")):
                dim = config.index_dim if ".index." in name else config.head_dim
            module.load(1 + random(dim, scale=0.1))
        elif isinstance(module, Linear):
            rows, columns = _shape(config, name)
            module.load(random(rows, columns, scale=1.0 if name == "embedding" else 1.5 / columns**0.5))
        elif isinstance(module, MixtureOfExperts):
            module.load_bias(random(config.num_experts, scale=0.2))
    return model


def _shape(config: MiniMaxM3Config, name: str) -> tuple[int, int]:
    """(out_features, in_features) of the layer with this name."""
    hidden, heads = config.hidden_size, config.num_q_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    shapes = {
        "embedding": (config.vocab_size, hidden),
        "head": (config.vocab_size, hidden),
        "attention.q_proj": (heads, hidden),
        "attention.k_proj": (kv, hidden),
        "attention.v_proj": (kv, hidden),
        "attention.o_proj": (hidden, heads),
        "index.q_proj": (config.num_index_heads * config.index_dim, hidden),
        "index.k_proj": (config.index_dim, hidden),
        "feed_forward.router": (config.num_experts, hidden),
    }
    found = shapes.get(".".join(name.split(".")[-2:]))
    if found is not None:
        return found
    width = config.dense_intermediate_size
    if ".experts." in name:
        width = config.expert_intermediate_size
    elif ".shared." in name:
        width = config.shared_intermediate_size
    return (hidden, width) if name.endswith("down_proj") else (width, hidden)


def random_engine(config: EngineConfig, model: MiniMaxM3Config = BENCH_M3) -> Engine:
    """An engine over `random_m3(model)`. Its block store knows the weights by how they were made."""
    digest = hashlib.sha256(f"{model} seed 0 torch {torch.__version__}".encode()).hexdigest()
    return Engine(random_m3(model), cast(Tokenizer, Letters()), config, weights=digest)

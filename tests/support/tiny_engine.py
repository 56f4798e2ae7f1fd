"""Small random models with an engine around them, built in memory: no checkpoint, no tokenizer file."""

from __future__ import annotations

import torch

from freehold.core.config import EngineConfig
from freehold.core.errors import TokenizerError
from freehold.engine.engine import Engine
from freehold.model.compute import compute_for
from freehold.model.layers import Linear, RMSNorm
from freehold.model.llama import Llama, LlamaConfig
from freehold.model.minimax_m3 import MiniMaxM3, MixtureOfExperts
from freehold.model.minimax_m3_config import MiniMaxM3Config

VOCAB = 320

LLAMA = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=80,
    intermediate_size=144,
    num_layers=3,
    num_q_heads=6,
    num_kv_heads=2,
    head_dim=24,
    context_length=1024,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tie_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)

M3 = MiniMaxM3Config(
    vocab_size=VOCAB,
    hidden_size=64,
    num_layers=3,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    context_length=1024,
    dense_intermediate_size=96,
    expert_intermediate_size=48,
    shared_intermediate_size=48,
    num_experts=8,
    num_experts_per_token=2,
    routed_scaling_factor=2.0,
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
    index_dim=32,
    num_index_heads=2,
    block_tokens=16,
    topk=3,
    local_blocks=1,
    init_blocks=0,
    sparse_attention=(False, True, True),
    moe=(False, True, True),
    tie_embeddings=False,
)


class Alphabet:
    """A tokenizer whose token i is the i-th printable character; token 0 ends an answer."""

    eos_ids = frozenset({0})
    special_ids = frozenset({0})

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 of the token's character; the last ids are padding and have none."""
        if token_id >= VOCAB - 8:
            raise TokenizerError(f"token id {token_id} is not in the vocabulary")
        return chr(0x100 + token_id).encode()

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """The characters of the tokens."""
        return "".join(chr(0x100 + i) for i in ids if not (skip_special and i in self.special_ids))


def tiny_model(kind: str = "llama", *, impl: str = "native", seed: int = 0) -> Llama | MiniMaxM3:
    """A random model of the given kind ("llama" or "m3")."""
    compute, _ = compute_for(impl)
    model = Llama(LLAMA, compute) if kind == "llama" else MiniMaxM3(M3, compute)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    config = model.config
    hidden, heads = config.hidden_size, config.num_q_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    shapes = {"q_proj": (heads, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, heads)}
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if isinstance(module, RMSNorm):
            dim = hidden
            if last in ("q_norm", "k_norm"):
                dim = config.index_dim if ".index." in name else config.head_dim
            module.load(1 + random(dim, scale=0.1))
        elif isinstance(module, Linear):
            if last in ("embedding", "head"):
                shape = (VOCAB, hidden)
            elif last == "router":
                shape = (config.num_experts, hidden)
            elif ".index." in name:
                shape = (config.num_index_heads * config.index_dim if last == "q_proj" else config.index_dim, hidden)
            elif last in shapes:
                shape = shapes[last]
            else:
                width = _mlp_width(config, name)
                shape = (hidden, width) if last == "down_proj" else (width, hidden)
            module.load(random(*shape, scale=1.0 if last == "embedding" else 1.5 / shape[1] ** 0.5))
        elif isinstance(module, MixtureOfExperts):
            module.load_bias(random(config.num_experts, scale=0.2))
    return model


def _mlp_width(config: LlamaConfig | MiniMaxM3Config, name: str) -> int:
    if isinstance(config, LlamaConfig):
        return config.intermediate_size
    if ".experts." in name:
        return config.expert_intermediate_size
    return config.shared_intermediate_size if ".shared." in name else config.dense_intermediate_size


def tiny_engine(model: Llama | MiniMaxM3, *, tokenizer: object | None = None, **options: object) -> Engine:
    """An engine over the model; the block size is the model's, or 16 for Llama."""
    options.setdefault("default_block_tokens", 16)
    return Engine(model, tokenizer or Alphabet(), EngineConfig(**options), weights="tiny")  # type: ignore[arg-type]


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Token ids without the end-of-sequence token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (count,), generator=generator).tolist()

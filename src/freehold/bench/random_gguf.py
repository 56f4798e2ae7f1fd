"""The random MiniMax-M3 of the suites as a GGUF file, for programs that read only files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import gguf
import numpy as np

from freehold.bench.random_m3 import BENCH_M3
from freehold.loading.checkpoint import Checkpoint
from freehold.model.compute import ReferenceCompute
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.minimax_m3_config import MiniMaxM3Config

NAME = "m3-bench"
"""What `freehold bench model` calls it."""


def write_random_gguf(path: Path, config: MiniMaxM3Config = BENCH_M3) -> None:
    """Writes it with matrices in float16; norms, routers and their biases are float32."""
    lead = config.sparse_attention.count(False)
    assert config.sparse_attention == config.moe == (False,) * lead + (True,) * (config.num_layers - lead), config
    writer = gguf.GGUFWriter(path, "minimax-m3")
    _add_sizes(writer, config, lead)
    _add_vocabulary(writer, config.vocab_size)
    generator = np.random.default_rng(0)
    sources, _ = MiniMaxM3(config, ReferenceCompute()).sources(cast(Checkpoint, SimpleNamespace(format="gguf")))
    for name, source in {source.name: source for source in sources}.items():
        values = generator.standard_normal(source.shape, np.float32)
        if len(source.shape) == 1:
            writer.add_tensor(name, values * np.float32(0.1) + np.float32(name.endswith("norm.weight")))
        else:
            values *= np.float32(1.0 if name == "token_embd.weight" else 1.5 / source.shape[-1] ** 0.5)
            writer.add_tensor(name, values.astype(np.float16) if source.matrix else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, c: MiniMaxM3Config, lead: int) -> None:
    writer.add_name("a random MiniMax-M3")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(c.num_layers)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.dense_intermediate_size)
    writer.add_head_count(c.num_q_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.rotary_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_expert_count(c.num_experts)
    writer.add_expert_used_count(c.num_experts_per_token)
    writer.add_expert_feed_forward_length(c.expert_intermediate_size)
    writer.add_expert_shared_count(c.shared_intermediate_size // c.expert_intermediate_size)
    writer.add_expert_weights_scale(c.routed_scaling_factor)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(lead)
    for key, value in (
        ("head_count", c.num_index_heads),
        ("key_length", c.index_dim),
        ("top_k", c.topk),
        ("block_size", c.block_tokens),
        ("local_blocks", c.local_blocks),
    ):
        writer.add_uint32(f"minimax-m3.attention.indexer.{key}", value)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """256 bytes, the tokens that begin and end a text, one merge, which llama.cpp wants, and names for the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]
    tokens += ["]~!b[", "[e~[", "th"]
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL]
    types += [gguf.TokenType.UNUSED] * (size - len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("minimax-m2")
    writer.add_token_list([*tokens, *(f"<unused{i}>" for i in range(len(tokens), size))])
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)

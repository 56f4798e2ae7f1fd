"""MiniMax-M3 in transformers with Freehold's kernels.

    from freehold.integrations import transformers as freehold_transformers
    freehold_transformers.register()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="freehold")

transformers' own index branch chooses the blocks and passes them on; the kernels attend to them. Layers without an
index branch get our dense attention. The vision tower's attention is bidirectional, which is none of our operators:
it goes to transformers' "sdpa".
"""

from __future__ import annotations

from typing import Any

import torch

from freehold.attention import attend_blocks, dense_attention
from freehold.core.errors import ArgumentError, ConfigError

NAME = "freehold"


def register() -> None:
    """Makes attn_implementation="freehold" known to transformers, in this process. May be called again.

    Raises ConfigError if transformers is missing or has no interface to register with.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise ConfigError(
            f"transformers with an attention interface is needed ({error}); pip install transformers"
        ) from None
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, causal_mask)


def causal_mask(*, attention_mask: torch.Tensor | None = None, **sizes: Any) -> None:
    """The mask that the model hands to `attention`: none, because causality follows from the positions.

    Raises ArgumentError for padding: blocks stand at absolute positions, so a padded batch would choose others.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ArgumentError(
            f"attn_implementation={NAME!r} takes sequences without padding; run each one alone, or use 'eager'"
        )


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    block_indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (batch, num_q_heads, total_q, head_dim), key and value
    (batch, num_kv_heads, total_k, head_dim) -> (batch, total_q, num_q_heads, head_dim), no weights.

    block_indices (batch, num_kv_heads, total_q, topk): valid ids first, then -1, in any order.
    """
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=False
        )
        return out, None
    if attention_mask is not None or dropout:
        raise ArgumentError(f"attn_implementation={NAME!r} takes neither an attention mask nor dropout")
    start = key.shape[2] - query.shape[2]
    rows = [
        _one(query[b], key[b], value[b], None if block_indices is None else block_indices[b], module, start, scaling)
        for b in range(query.shape[0])
    ]
    return torch.stack(rows).to(query.dtype), None


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_indices: torch.Tensor | None,
    module: torch.nn.Module,
    start: int,
    scaling: float | None,
) -> torch.Tensor:
    """One sequence; heads come first on the way in, tokens on the way out."""
    q, k, v = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    if block_indices is None:
        return dense_attention(q, k, v, query_start=start, scale=scaling)
    block_tokens = int(module.config.index_block_size)  # type: ignore[union-attr, arg-type]
    beyond = block_indices.new_full((), torch.iinfo(block_indices.dtype).max)
    ids = torch.where(block_indices < 0, beyond, block_indices).sort(dim=-1).values
    ids = torch.where(ids == beyond, ids.new_full((), -1), ids)
    block_ids = ids.transpose(0, 1).to(torch.int32).contiguous()
    return attend_blocks(q, k, v, block_ids, query_start=start, block_tokens=block_tokens, scale=scaling)

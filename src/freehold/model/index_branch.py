"""The index branch of a sparse attention layer: what its blocks are chosen by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from freehold.model.compute import Compute
from freehold.model.layers import Linear, RMSNorm


@dataclass(frozen=True, slots=True)
class IndexSizes:
    """num_index_heads: one for each KV head. index_dim: of a query and of the key that all heads share. block_tokens,
    topk, local_blocks, init_blocks: see `freehold.attention.select_blocks`."""

    num_index_heads: int
    index_dim: int
    block_tokens: int
    topk: int
    local_blocks: int = 1
    init_blocks: int = 0


class IndexBranch(nn.Module):
    """Scores blocks: one index query head for each KV head, one index key for all of them."""

    def __init__(self, sizes: IndexSizes, compute: Compute, *, norm_eps: float | None) -> None:
        """norm_eps: of the norms of queries and keys; None: there are none."""
        super().__init__()
        self.sizes, self.compute = sizes, compute
        self.q_proj, self.k_proj = Linear(compute), Linear(compute)
        if norm_eps is not None:
            self.q_norm, self.k_norm = RMSNorm(compute, norm_eps), RMSNorm(compute, norm_eps)
        self.has_norms = norm_eps is not None

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """What q_proj and k_proj made -> index_q (rows, num_index_heads, index_dim), index_k (rows, index_dim)."""
        s, rows = self.sizes, q.shape[0]
        q, k = q.view(rows, s.num_index_heads, s.index_dim), k.view(rows, 1, s.index_dim)
        if self.has_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.compute.rope(q, cos, sin), self.compute.rope(k, cos, sin)[:, 0]

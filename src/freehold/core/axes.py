"""The axis legend: one name for each size, used in every docstring, comment and error of the project.

| name            | what it counts                                                             |
|-----------------|----------------------------------------------------------------------------|
| total_q         | query tokens in a call; sequences are packed one after another             |
| total_k         | key tokens in a call                                                       |
| num_q_heads     | query heads                                                                |
| num_kv_heads    | key/value heads, which are also the groups of grouped-query attention      |
| num_index_heads | heads of the index branch; one for each KV head                            |
| head_dim        | width of a query, key or value head                                        |
| index_dim       | width of an index query or index key                                       |
| block_tokens    | tokens in a block: positions [b * block_tokens, (b + 1) * block_tokens)    |
| num_blocks      | blocks in a sequence, ceil(total_k / block_tokens)                         |
| topk            | blocks a query may read in a sparse layer, the local block among them      |
| hidden_size     | width of the residual stream                                               |

Tensors are token-major: the token axis comes first, the head axis second. Positions are absolute,
so block `b` of a sequence always means the same tokens, whatever part of it a call sees.
"""

from __future__ import annotations

DEFAULT_BLOCK_TOKENS = 128
"""Block size of MiniMax-M3, and of the cache for models that have no block size of their own."""


def ceil_div(a: int, b: int) -> int:
    """The smallest integer >= a / b, for a >= 0 and b > 0."""
    return -(-a // b)

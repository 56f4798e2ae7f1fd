"""MiniMax Sparse Attention: choose blocks with the index branch, then attend to them (arXiv 2606.13392).

The operators know nothing of requests, files or models. `impl="reference"` is the oracle: plain torch,
differentiable. `impl="native"` is the C++ library. An explicit choice never falls back.
"""

from freehold.attention.api import attend_blocks, dense_attention, index_kl_loss, select_blocks, sparse_attention

__all__ = ["attend_blocks", "dense_attention", "index_kl_loss", "select_blocks", "sparse_attention"]

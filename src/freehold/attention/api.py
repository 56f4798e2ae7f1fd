"""The MSA operators: validation and dispatch. The mathematics stands in `freehold.attention.impl`.

Shapes use the axis legend of `freehold.core.axes`: total_q, total_k, num_q_heads, num_kv_heads, num_index_heads,
head_dim, index_dim, block_tokens, num_blocks, topk. One sequence a call; query i stands at position query_start + i,
key j at position j, so total_k >= query_start + total_q.
"""

from __future__ import annotations

from numbers import Real
from types import ModuleType
from typing import Any, cast

import torch

from freehold.attention.impl import native, reference
from freehold.attention.impl.kl import IndexKL, Task
from freehold.core.errors import ArgumentError
from freehold.kernels.library import MOST_BLOCK_TOKENS, MOST_TOPK, check_whole

_IMPLS = {"reference": reference, "native": native}


def choose_impl(impl: str, *inputs: torch.Tensor) -> tuple[str, str]:
    """(name, reason) of the implementation that runs: "auto" picks, an explicit name is taken as it is.

    Raises ArgumentError for an unknown name.
    """
    if impl == "auto":
        if any(t.device.type != "cpu" for t in inputs):
            return "reference", "an input is not on the CPU"
        if any(t.dtype not in (torch.float32, torch.bfloat16) for t in inputs):
            return "reference", "the kernels take float32 and bfloat16"
        return "native", "float32 or bfloat16 on the CPU"
    if impl not in _IMPLS:
        raise ArgumentError(f"impl is {impl!r}; it must be one of 'auto', {', '.join(map(repr, _IMPLS))}")
    return impl, "asked for by name"


def select_blocks(
    index_q: torch.Tensor,
    index_k: torch.Tensor,
    *,
    query_start: int,
    block_tokens: int = 128,
    topk: int = 16,
    local_blocks: int = 1,
    init_blocks: int = 0,
    impl: str = "auto",
) -> torch.Tensor:
    """The blocks each query reads (paper Eq. 6 and 7).

    index_q (total_q, num_index_heads, index_dim), index_k (total_k, index_dim); float32 or bfloat16.
    Returns int32 (total_q, num_index_heads, topk): ascending block ids, then -1 where fewer are visible.

    A block's score is the largest dot product of the query with the block's visible keys. The best blocks win;
    equal scores go to the lower id. The query's own block and the `local_blocks - 1` before it, and the first
    `init_blocks`, always win and use slots of topk. Scores are compared in float64, and NaN counts as -inf.
    The selection has no gradient. Raises ArgumentError for sizes that do not fit together.
    """
    _check_ndim(index_q=(index_q, 3), index_k=(index_k, 2))
    _check_equal("index_dim", index_q=index_q.shape[2], index_k=index_k.shape[1])
    _check_some(num_index_heads=index_q.shape[1], index_dim=index_q.shape[2])
    _check_positions(index_q.shape[0], index_k.shape[0], query_start)
    _check_block_tokens(block_tokens)
    for name, value, least in (("topk", topk, 1), ("local_blocks", local_blocks, 0), ("init_blocks", init_blocks, 0)):
        check_whole(name, value, least, MOST_TOPK)
    if local_blocks < 1 or local_blocks + init_blocks > topk:
        raise ArgumentError(
            f"topk is {topk}, local_blocks {local_blocks}, init_blocks {init_blocks}; the local block is always "
            "chosen, so local_blocks must be at least 1, and local_blocks + init_blocks at most topk"
        )
    with torch.no_grad():
        return _impl(impl, index_q, index_k).select_blocks(  # type: ignore[no-any-return]
            index_q,
            index_k,
            query_start=query_start,
            block_tokens=block_tokens,
            topk=topk,
            local_blocks=local_blocks,
            init_blocks=init_blocks,
        )


def attend_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_ids: torch.Tensor,
    *,
    query_start: int,
    block_tokens: int = 128,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Softmax attention over the visible tokens of the chosen blocks (paper Eq. 8).

    q (total_q, num_q_heads, head_dim), k and v (total_k, num_kv_heads, head_dim), block_ids int32
    (total_q, num_kv_heads, topk): ascending, -1 tail; query head h uses row h // (num_q_heads // num_kv_heads).
    Returns float32 (float64 for float64 inputs) shaped like q. scale: positive; head_dim ** -0.5 if None.

    Each row must hold at least one block, and none twice, beyond the query's own, or after a -1; else ArgumentError.
    Differentiable once in q, k and v, with at most 48 query heads for a KV head; with impl="reference", as often as you
    like. The kernels' error in float32 is no larger than torch's in float32. With instruction set avx512bf16, subnormal
    bfloat16 numbers count as zero. A token whose v is not finite makes queries before it in its block NaN, if they are
    in the call.
    """
    _check_attention(q, k, v, query_start)
    _check_block_tokens(block_tokens)
    _check_tensor("block_ids", block_ids)
    if block_ids.dtype != torch.int32:
        raise ArgumentError(f"block_ids has type {block_ids.dtype}; it must be torch.int32")
    if block_ids.ndim != 3 or block_ids.shape[:2] != (q.shape[0], k.shape[1]) or block_ids.shape[2] < 1:
        raise ArgumentError(
            f"block_ids has shape {tuple(block_ids.shape)}; it must be (total_q, num_kv_heads, topk) "
            f"= ({q.shape[0]}, {k.shape[1]}, at least 1)"
        )
    positions = torch.arange(query_start, query_start + q.shape[0], device=block_ids.device)
    _check_block_ids(block_ids, positions // block_tokens)
    return _impl(impl, q, k, v).attend_blocks(  # type: ignore[no-any-return]
        q, k, v, block_ids, query_start=query_start, block_tokens=block_tokens, scale=_scale(scale, q)
    )


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index_q: torch.Tensor,
    index_k: torch.Tensor,
    *,
    query_start: int,
    block_tokens: int = 128,
    topk: int = 16,
    local_blocks: int = 1,
    init_blocks: int = 0,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """`select_blocks`, then `attend_blocks`: MiniMax Sparse Attention. num_index_heads must equal num_kv_heads.

    Differentiable in q, k and v (in the kernels once, in the reference again); the index branch gets no gradient
    from here (it is trained by its own loss).
    """
    _check_ndim(q=(q, 3), k=(k, 3), v=(v, 3), index_q=(index_q, 3), index_k=(index_k, 2))
    _check_equal("num_index_heads = num_kv_heads", index_q=index_q.shape[1], k=k.shape[1])
    _check_equal("total_q", q=q.shape[0], index_q=index_q.shape[0])
    _check_equal("total_k", k=k.shape[0], index_k=index_k.shape[0])
    # The choice of blocks has no gradient, but its types decide too.
    chosen, _ = choose_impl(impl, q, k, v, index_q.detach(), index_k.detach())
    block_ids = select_blocks(
        index_q.detach(),
        index_k.detach(),
        query_start=query_start,
        block_tokens=block_tokens,
        topk=topk,
        local_blocks=local_blocks,
        init_blocks=init_blocks,
        impl=chosen,
    )
    return attend_blocks(
        q, k, v, block_ids, query_start=query_start, block_tokens=block_tokens, scale=scale, impl=chosen
    )


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    query_start: int,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Causal attention of every query to every key at or before its position; shapes as `attend_blocks`."""
    _check_attention(q, k, v, query_start)
    return _impl(impl, q, k, v).dense_attention(  # type: ignore[no-any-return]
        q, k, v, query_start=query_start, scale=_scale(scale, q)
    )


def index_kl_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    index_q: torch.Tensor,
    index_k: torch.Tensor,
    *,
    query_start: int = 0,
    positions: torch.Tensor | None = None,
    block_ids: torch.Tensor | None = None,
    block_tokens: int = 128,
    scale: float | None = None,
    index_scale: float | None = None,
) -> torch.Tensor:
    """How far the index branch is from the attention it stands for: KL(teacher || student), the mean over queries and
    groups (paper Eq. 9 to 12). A scalar.

    Shapes as `sparse_attention`. Teacher: each query head's softmax over the support, then the mean of the group's
    probabilities. Student: the softmax of index_scale * index_q . index_k. The support is every key at or before the
    query; with block_ids (total_q, num_kv_heads, topk), as `select_blocks` gives them, the visible tokens of these
    blocks alone. Query i stands at query_start + i, or at positions[i], int64 (total_q,): a sample of queries is enough
    to train with. scale, index_scale: head_dim ** -0.5 and index_dim ** -0.5 if None.

    Differentiable once, in index_q and index_k alone: q and k teach, and get no gradient. Keep that of the branch from
    the model's own layers by detaching what its projections read. float64 stays float64, everything else is computed in
    float32; memory does not grow with total_q * total_k.
    """
    _check_attention(q, k, k, query_start if positions is None else 0)
    _check_ndim(index_q=(index_q, 3), index_k=(index_k, 2))
    _check_equal("num_index_heads = num_kv_heads", index_q=index_q.shape[1], k=k.shape[1])
    _check_equal("total_q", q=q.shape[0], index_q=index_q.shape[0])
    _check_equal("total_k", k=k.shape[0], index_k=index_k.shape[0])
    _check_equal("index_dim", index_q=index_q.shape[2], index_k=index_k.shape[1])
    _check_some(index_dim=index_k.shape[1])
    if len({t.dtype == torch.float64 for t in (q, k, index_q, index_k)}) > 1:
        raise ArgumentError("some of q, k, index_q and index_k are float64; all or none may be")
    if positions is None:
        positions = torch.arange(query_start, query_start + q.shape[0], device=q.device)
    elif not isinstance(positions, torch.Tensor):
        raise ArgumentError(f"positions is a {type(positions).__name__}; it must be a torch.Tensor")
    elif positions.shape != q.shape[:1] or positions.dtype != torch.int64:
        raise ArgumentError(
            f"positions has shape {tuple(positions.shape)} and type {positions.dtype}; it must be int64 ({q.shape[0]},)"
        )
    elif q.shape[0] and not 0 <= int(positions.min()) <= int(positions.max()) < k.shape[0]:
        low, high = int(positions.min()), int(positions.max())
        raise ArgumentError(f"positions go from {low} to {high}; there are keys from 0 to {k.shape[0] - 1}")
    if block_ids is not None:
        _check_block_tokens(block_tokens)
        _check_tensor("block_ids", block_ids)
        fits = block_ids.ndim == 3 and block_ids.shape[:2] == index_q.shape[:2] and block_ids.shape[2] > 0
        if not fits or block_ids.dtype != torch.int32:
            raise ArgumentError(
                f"block_ids has shape {tuple(block_ids.shape)} and type {block_ids.dtype}; it must be int32 "
                f"(total_q, num_kv_heads, topk) = ({q.shape[0]}, {k.shape[1]}, at least 1)"
            )
        _check_block_ids(block_ids, positions.to(block_ids.device) // block_tokens)
    task = Task(positions, block_ids, block_tokens, _scale(scale, q), _scale(index_scale, index_q, "index_"))
    return IndexKL.apply(index_q, index_k, q, k, task)  # type: ignore[no-any-return, no-untyped-call]


def _impl(impl: str, *inputs: torch.Tensor) -> ModuleType:
    return _IMPLS[choose_impl(impl, *inputs)[0]]


def _scale(scale: Any, q: torch.Tensor, branch: str = "") -> float:
    """branch: what its name begins with in errors."""
    if scale is None:
        return float(q.shape[2] ** -0.5)
    if (
        not isinstance(scale, Real)
        or not torch.finfo(torch.float32).tiny <= cast(float, scale) <= torch.finfo(torch.float32).max
    ):
        raise ArgumentError(
            f"{branch}scale is {scale!r}; it must be a positive number of float32, or None for "
            f"{branch or 'head_'}dim ** -0.5"
        )
    return float(scale)


def _check_ndim(**tensors: tuple[torch.Tensor, int]) -> None:
    for name, (tensor, ndim) in tensors.items():
        _check_tensor(name, tensor)
        if tensor.is_complex():
            raise ArgumentError(f"{name} has type {tensor.dtype}; attention takes real numbers")
        if tensor.ndim != ndim:
            raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; it must have {ndim} axes")


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")


def _check_equal(what: str, **sizes: int) -> None:
    if len(set(sizes.values())) != 1:
        raise ArgumentError(f"{what} differs: " + ", ".join(f"{name} has {size}" for name, size in sizes.items()))


def _check_some(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(f"{name} is {size}; it must be at least 1")


def _check_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, query_start: int) -> None:
    _check_ndim(q=(q, 3), k=(k, 3), v=(v, 3))
    _check_equal("head_dim", q=q.shape[2], k=k.shape[2], v=v.shape[2])
    _check_equal("total_k", k=k.shape[0], v=v.shape[0])
    _check_equal("num_kv_heads", k=k.shape[1], v=v.shape[1])
    if k.dtype != v.dtype or (q.dtype == torch.float64) != (k.dtype == torch.float64):
        raise ArgumentError(
            f"q has type {q.dtype}, k {k.dtype} and v {v.dtype}; k and v must have one type, and q be float64 exactly "
            "if they are; convert with .to()"
        )
    _check_some(num_q_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim=q.shape[2])
    if q.shape[1] % k.shape[1]:
        raise ArgumentError(f"num_q_heads {q.shape[1]} is no multiple of num_kv_heads {k.shape[1]}")
    _check_positions(q.shape[0], k.shape[0], query_start)


def _check_positions(total_q: int, total_k: int, query_start: int) -> None:
    check_whole("query_start", query_start, 0, 2**62)
    if query_start + total_q > total_k:
        raise ArgumentError(
            f"query_start is {query_start} and total_q {total_q}, but there are keys for {total_k} positions only; "
            "the keys of the queries' own tokens belong to total_k"
        )


def _check_block_tokens(block_tokens: int) -> None:
    check_whole("block_tokens", block_tokens, 16, MOST_BLOCK_TOKENS)
    if block_tokens % 16:
        raise ArgumentError(f"block_tokens is {block_tokens}; it must be a positive multiple of 16")


def _check_block_ids(block_ids: torch.Tensor, local: torch.Tensor) -> None:
    """local: (total_q,), the queries' own blocks."""
    if block_ids.numel() == 0:
        return
    beyond = (block_ids < -1) | (block_ids > local[:, None, None])
    before, after = block_ids[..., :-1], block_ids[..., 1:]
    ordered = ((after > before) & (before >= 0)) | (after == -1)  # -1 < 0, but nothing may come after it
    if bool(beyond.any()) or not bool(ordered.all()) or bool((block_ids[..., 0] < 0).any()):
        raise ArgumentError(
            "block_ids must be ascending without repeats, then -1, hold at least one block, and none after the "
            "query's own block"
        )

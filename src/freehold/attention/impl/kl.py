"""The loss that trains the index branch, with its gradient made in the same pass (paper Eq. 9 to 12).

With P the teacher and S the student's scores, dLoss/dS = (softmax(S) - P) / (total_q * num_index_heads): everything the
backward pass needs is there once the loss is. Queries are taken in chunks and keys in tiles, so that memory does not
grow with total_q * total_k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freehold.attention.impl.once import Once
from freehold.attention.impl.reference import tokens_of

_BUDGET = 1 << 25
"""Most elements of an intermediate tensor."""
_KEY_TILE = 4096


@dataclass(frozen=True, slots=True)
class Task:
    """What the loss is of. positions: int64 (total_q,). block_ids: None for every causal key."""

    positions: Tensor
    block_ids: Tensor | None
    block_tokens: int
    scale: float
    index_scale: float


class IndexKL(torch.autograd.Function):
    """index_q (total_q, num_index_heads, index_dim), index_k (total_k, index_dim), q (total_q, num_q_heads, head_dim),
    k (total_k, num_kv_heads, head_dim) -> the loss. Only index_q and index_k get a gradient."""

    @staticmethod
    def forward(ctx: Any, index_q: Tensor, index_k: Tensor, q: Tensor, k: Tensor, task: Task) -> Tensor:
        """Computes the loss, and the gradients for a factor of 1."""
        work = _dense if task.block_ids is None else _sparse
        loss, index_q_grad, index_k_grad = work(_exact(index_q), _exact(index_k), _exact(q), _exact(k), task)
        count = max(1, index_q.shape[0] * index_q.shape[1])
        ctx.save_for_backward(index_q_grad / count, index_k_grad / count, index_q, index_k)
        return loss / count

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradients times `factor`."""
        index_q_grad, index_k_grad, index_q, index_k = ctx.saved_tensors
        gradients = (factor * index_q_grad).to(index_q.dtype), (factor * index_k_grad).to(index_k.dtype)
        told = "index_kl_loss is differentiable once"
        to_q, to_k = Once.apply(told, 2, *gradients, index_q, index_k)  # type: ignore[no-untyped-call]
        return to_q, to_k, None, None, None


Result = tuple[Tensor, Tensor, Tensor]


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def _dense(index_q: Tensor, index_k: Tensor, q: Tensor, k: Tensor, task: Task) -> Result:
    """Over all causal keys: one pass for the two normalisations, one for the rest."""
    loss = index_q.new_zeros((), dtype=torch.float64)
    index_q_grad, index_k_grad = torch.zeros_like(index_q), torch.zeros_like(index_k)
    rows = max(1, _BUDGET // (q.shape[1] * min(_KEY_TILE, max(1, k.shape[0]))))
    for first in range(0, q.shape[0], rows):
        here = slice(first, first + rows)
        chunk = _Chunk(index_q[here], q[here], k.shape[1], task.positions[here], task)
        tiles = list(chunk.tiles(k.shape[0]))
        held = {}
        for tile in tiles:
            scores = chunk.scores(index_k[tile], k[tile], tile)
            chunk.count(*scores)
            if len(tiles) == 1:
                held[0] = scores
        for number, tile in enumerate(tiles):
            teacher, student = held.get(number) or chunk.scores(index_k[tile], k[tile], tile)
            part, grad = chunk.compare(teacher, student)
            loss += part
            index_q_grad[here] += torch.einsum("nht,td->nhd", grad, index_k[tile]) * task.index_scale
            index_k_grad[tile] += torch.einsum("nht,nhd->td", grad, index_q[here]) * task.index_scale
    return loss.to(index_q.dtype), index_q_grad, index_k_grad


class _Chunk:
    """Some queries against all keys, tile by tile: their scores, and what these add up to."""

    def __init__(self, index_q: Tensor, q: Tensor, num_kv_heads: int, positions: Tensor, task: Task) -> None:
        self.index_q, self.positions, self.task = index_q, positions, task
        self.q = q.view(q.shape[0], num_kv_heads, -1, q.shape[2])
        self.teacher = q.new_full(self.q.shape[:3], -torch.inf)
        self.student = q.new_full(index_q.shape[:2], -torch.inf)

    def tiles(self, total_k: int) -> Iterator[slice]:
        """The tiles of keys that some query sees."""
        end = min(total_k, int(self.positions.max()) + 1)
        for start in range(0, end, _KEY_TILE):
            yield slice(start, min(start + _KEY_TILE, end))

    def scores(self, index_k: Tensor, k: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
        """Logits of the teacher (rows, num_kv_heads, group, keys) and of the student (rows, heads, keys); -inf where a
        key is not seen."""
        future = torch.arange(tile.start, tile.stop, device=k.device) > self.positions[:, None]
        teacher = torch.einsum("nhgd,thd->nhgt", self.q, k) * self.task.scale
        student = torch.einsum("nhd,td->nht", self.index_q, index_k) * self.task.index_scale
        return (
            teacher.masked_fill_(future[:, None, None], -torch.inf),
            student.masked_fill_(future[:, None], -torch.inf),
        )

    def count(self, teacher: Tensor, student: Tensor) -> None:
        """Adds a tile to the logarithms of the sums."""
        self.teacher = torch.logaddexp(self.teacher, teacher.logsumexp(dim=-1))
        self.student = torch.logaddexp(self.student, student.logsumexp(dim=-1))

    def compare(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """A tile's part of the loss, summed, and its gradient (rows, heads, keys) for the student's scores."""
        probability = (teacher - self.teacher[..., None]).exp_().mean(dim=2)
        return _divergence(probability, student - self.student[..., None])


def _divergence(probability: Tensor, log_student: Tensor) -> tuple[Tensor, Tensor]:
    """sum p (log p - log s) where p > 0, in float64; and s - p."""
    # Where p is 0 the student's logarithm may be -inf: that is no loss.
    terms = torch.xlogy(probability, probability) - probability * log_student.masked_fill(probability == 0, 0.0)
    return terms.sum(dtype=torch.float64), log_student.exp() - probability


def _sparse(index_q: Tensor, index_k: Tensor, q: Tensor, k: Tensor, task: Task) -> Result:
    """Over the visible tokens of the chosen blocks, which are gathered."""
    assert task.block_ids is not None
    loss = index_q.new_zeros((), dtype=torch.float64)
    index_q_grad, index_k_grad = torch.zeros_like(index_q), torch.zeros_like(index_k)
    num_kv_heads, width = k.shape[1], task.block_ids.shape[2] * task.block_tokens
    rows = max(1, _BUDGET // (num_kv_heads * width * max(k.shape[2], index_k.shape[1])))
    head = torch.arange(num_kv_heads, device=q.device)[None, :, None]
    for first in range(0, q.shape[0], rows):
        here = slice(first, first + rows)
        ids, positions = task.block_ids[here].long(), task.positions[here]
        n = ids.shape[0]
        tokens, seen = tokens_of(ids, positions, task.block_tokens, k.shape[0])
        hidden = ~seen
        queries = q[here].view(n, num_kv_heads, -1, q.shape[2])
        teacher = torch.einsum("nhgd,nhtd->nhgt", queries, k[tokens, head]) * task.scale
        probability = teacher.masked_fill_(hidden[:, :, None], -torch.inf).softmax(dim=-1).mean(dim=2)
        keys = index_k[tokens]
        student = torch.einsum("nhd,nhtd->nht", index_q[here], keys) * task.index_scale
        part, grad = _divergence(probability, student.masked_fill_(hidden, -torch.inf).log_softmax(dim=-1))
        loss += part
        index_q_grad[here] = torch.einsum("nht,nhtd->nhd", grad, keys) * task.index_scale
        to_keys = torch.einsum("nht,nhd->nhtd", grad, index_q[here]) * task.index_scale
        index_k_grad.index_add_(0, tokens.reshape(-1), to_keys.reshape(-1, index_k.shape[1]))
    return loss.to(index_q.dtype), index_q_grad, index_k_grad

"""How much of a layer's attention lies in the blocks that its branch chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freehold.attention import select_blocks
from freehold.attention.impl.reference import top_blocks
from freehold.attention.masses import block_masses
from freehold.model.index_branch import IndexSizes
from freehold.training.distil import Lesson, index_of

_ROWS = 64


@dataclass(frozen=True, slots=True)
class Recall:
    """Means over queries and groups. mass: attention inside the chosen blocks; oracle: inside the best ones, of the
    same number; blocks: chosen ones that are among the best, as a part of them."""

    mass: float
    oracle: float
    blocks: float


def recall_of(q: Tensor, k: Tensor, lesson: Lesson, sizes: IndexSizes) -> Recall:
    """Of the branch with projections q and k, for a lesson's queries."""
    index_q, index_k = index_of(q, k, lesson)
    scale = lesson.k.shape[2] ** -0.5
    masses, oracles, hits = [], [], []
    for first in range(0, len(lesson.positions), _ROWS):
        here = lesson.positions[first : first + _ROWS]
        mass = block_masses(lesson.q[first : first + _ROWS], lesson.k, here, sizes.block_tokens, scale)
        local = here // sizes.block_tokens
        best = block_mask(top_blocks(mass, local, sizes.topk, sizes.local_blocks, sizes.init_blocks), mass.shape[2])
        chosen = block_mask(_choose(index_q[first : first + _ROWS], index_k, here, sizes), mass.shape[2])
        masses.append((mass * chosen).sum(dim=-1))
        oracles.append((mass * best).sum(dim=-1))
        hits.append((chosen & best).sum(dim=-1) / best.sum(dim=-1))
    return Recall(*(float(torch.cat(parts).mean()) for parts in (masses, oracles, hits)))


def block_mask(block_ids: Tensor, num_blocks: int) -> Tensor:
    """(rows, heads, num_blocks), True where a block is among the ids; -1 is none."""
    mask = torch.zeros(*block_ids.shape[:2], num_blocks + 1, dtype=torch.bool)
    return mask.scatter_(2, block_ids.long() % (num_blocks + 1), True)[:, :, :-1]


def _choose(index_q: Tensor, index_k: Tensor, positions: Tensor, sizes: IndexSizes) -> Tensor:
    """What the branch chooses for queries at any positions: int32 (rows, heads, topk)."""
    found = []
    for row, position in enumerate(positions.tolist()):
        found.append(
            select_blocks(
                index_q[row : row + 1].detach(), index_k[: position + 1].detach(), query_start=position,
                block_tokens=sizes.block_tokens, topk=sizes.topk, local_blocks=sizes.local_blocks,
                init_blocks=sizes.init_blocks, impl="reference",
            )
        )  # fmt: skip
    return torch.cat(found)

"""Whether a model's sparse layers choose the blocks that get most of their attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from freehold.attention.blocks import NativeBlockAttention
from freehold.attention.impl.reference import top_blocks
from freehold.attention.masses import block_masses
from freehold.core.blocks import LayerLanes, Spans
from freehold.core.errors import ArgumentError
from freehold.training.corpus import Window
from freehold.training.frozen import WindowReader
from freehold.training.recall import Recall, block_mask

_EVERY = 64
"""One query of so many is looked at: its weights of every key are computed."""


@dataclass(frozen=True, slots=True)
class GroupRecall:
    """`Recall` of one group of a layer, over the second halves of all windows."""

    layer: int
    group: int
    recall: Recall

    def as_json(self) -> dict[str, Any]:
        """layer, group, mass, oracle, blocks."""
        return {"layer": self.layer, "group": self.group, **asdict(self.recall)}


class WatchedBlockAttention(NativeBlockAttention):
    """Attention as it is, that also looks where it would have gone. For one sequence a call."""

    def __init__(self) -> None:
        self.begin = 0
        self._found: dict[int, list[Tensor]] = {}

    def sparse(
        self,
        q: Tensor,
        index_q: Tensor,
        lanes: LayerLanes,
        spans: Spans,
        *,
        topk: int,
        local_blocks: int,
        init_blocks: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """See `BlockAttention.sparse`."""
        choice = {"topk": topk, "local_blocks": local_blocks, "init_blocks": init_blocks}
        out, block_ids = super().sparse(q, index_q, lanes, spans, scale=scale, **choice)
        assert spans.num == 1
        rows = torch.nonzero((spans.positions % _EVERY == _EVERY - 1) & (spans.positions >= self.begin))[:, 0]
        if len(rows):
            positions = spans.positions[rows].long()
            k = lanes.flat_k(spans.slots_of(0).long())[: int(positions[-1]) + 1].float()
            mass = block_masses(q[rows], k, positions, lanes.block_tokens, scale)
            best = block_mask(
                top_blocks(mass, positions // lanes.block_tokens, topk, local_blocks, init_blocks), mass.shape[2]
            )
            chosen = block_mask(block_ids[rows], mass.shape[2])
            each = ((mass * chosen).sum(-1), (mass * best).sum(-1), (chosen & best).sum(-1) / best.sum(-1))
            self._found.setdefault(id(lanes), []).append(torch.stack(each))
        return out, block_ids

    def recalls(self, lanes: Sequence[LayerLanes]) -> list[GroupRecall]:
        """What was seen so far, of every sparse layer and group. lanes: of all layers, in their order."""
        found = []
        for layer, one in enumerate(lanes):
            if id(one) in self._found:
                means = torch.cat(self._found[id(one)], dim=1).double().mean(dim=1)  # (3, groups)
                found += [GroupRecall(layer, g, Recall(*means[:, g].tolist())) for g in range(means.shape[1])]
        return found


def check_recall(length: int) -> None:
    """Raises ArgumentError for windows in which no query would be looked at."""
    if length < _EVERY:
        raise ArgumentError(f"window_tokens is {length}; recall looks at one query of {_EVERY}; give longer windows")


def recalls_of(
    watched: WatchedBlockAttention, reader: WindowReader, windows: Sequence[Window], progress: Callable[[int], None]
) -> list[GroupRecall]:
    """Reads all windows with a model whose attention is `watched`; looks at the second half of each."""
    watched.begin = len(windows[0].token_ids) // 2
    for number, window in enumerate(windows, 1):
        reader.losses(window.token_ids)
        progress(number)
    return watched.recalls(reader.lanes)

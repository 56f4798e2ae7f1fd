"""What the engine asks of a model, and the parts of a decoder that do not differ between models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from freehold.core.blocks import LaneSpec, LayerLanes, Spans
from freehold.core.visuals import Frames, Overlay

BlockObserver = Callable[[int, Tensor], None]
"""Called with (layer, block ids int32 (rows, num_index_heads, topk)) by each sparse layer."""


class Model(Protocol):
    """A decoder-only language model over the block cache."""

    vocab_size: int
    context_length: int
    block_tokens: int | None
    """The block size that its mathematics needs; None: any will do."""
    lane_specs: tuple[LaneSpec, ...]
    compute_name: str

    def forward(
        self,
        token_ids: Tensor,
        spans: Spans,
        lanes: Sequence[LayerLanes],
        *,
        logit_rows: Tensor,
        observer: BlockObserver | None = None,
    ) -> Tensor:
        """token_ids (rows,) int64 -> logits (len(logit_rows), vocab_size) float32 of the wanted rows.

        Stores the new tokens' K, V and index-K in their blocks on the way.
        """


class Vision(Protocol):
    """What makes frames into rows of a prompt."""

    def steps(self, frames: Frames) -> Iterator[Tensor | None]:
        """None whenever there is a moment to pause, and last the (frames.num_tokens, hidden_size of the text model)
        float32; the same bits whatever was seen before."""


def last_of(steps: Iterator[Tensor | None]) -> Tensor:
    """The features, without a pause."""
    (features,) = (step for step in steps if step is not None)
    return features


class SeeingModel(Model, Protocol):
    """A model whose prompts may hold frames."""

    def forward(
        self,
        token_ids: Tensor,
        spans: Spans,
        lanes: Sequence[LayerLanes],
        *,
        logit_rows: Tensor,
        observer: BlockObserver | None = None,
        overlay: Overlay | None = None,
    ) -> Tensor:
        """As `Model.forward`; overlay: rows that take features in place of a token's embedding."""

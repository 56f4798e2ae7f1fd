"""Running the model over a step's work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from freehold.cache import BlockCache
from freehold.cache import Sequence as CachedSequence
from freehold.core.blocks import Span, Spans
from freehold.core.visuals import Overlay
from freehold.model.alone import kernels_alone
from freehold.model.base import BlockObserver, Model, SeeingModel


class Runner:
    """One model over one cache."""

    def __init__(self, model: Model, cache: BlockCache) -> None:
        self.model = model
        self.cache = cache

    def run(
        self,
        pieces: Sequence[tuple[CachedSequence, int, int]],
        logit_rows: Sequence[int],
        observer: BlockObserver | None = None,
        overlay: Overlay | None = None,
    ) -> torch.Tensor:
        """Computes (sequence, start, length) pieces together; logits (len(logit_rows), vocab_size) float32.

        Rows are counted over the pieces in order. Slots for the tokens have been reserved.
        overlay: the rows where images stand; only for a `SeeingModel`.
        """
        spans = Spans.pack(
            [Span(start, length, sequence.slots) for sequence, start, length in pieces], self.cache.block_tokens
        )
        wanted, lanes = torch.tensor(logit_rows, dtype=torch.int64), self.cache.pool.lanes
        with kernels_alone(self.model):
            if overlay is None:
                token_ids = torch.tensor(
                    [t for sequence, start, length in pieces for t in sequence.tokens[start : start + length]]
                )
                logits = self.model.forward(token_ids, spans, lanes, logit_rows=wanted, observer=observer)
            else:
                model = cast(SeeingModel, self.model)
                logits = model.forward(
                    overlay.token_ids, spans, lanes, logit_rows=wanted, observer=observer, overlay=overlay
                )
        for sequence, start, length in pieces:
            self.cache.computed(sequence, start + length)
        return logits

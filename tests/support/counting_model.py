"""A model without mathematics: it counts what it is asked to compute, and a clock says how long that took."""

from __future__ import annotations

from collections.abc import Callable

import torch

from freehold.core.blocks import LaneSpec
from freehold.core.config import EngineConfig
from freehold.engine.engine import Engine
from support.tiny_engine import VOCAB, Alphabet


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CountingModel:
    """Says the same token again and again. A step takes `cost([(depth, tokens), ...])` seconds of the clock."""

    vocab_size, block_tokens, compute_name = VOCAB, None, "none"
    lane_specs = (LaneSpec(1, 16),)

    def __init__(self, clock: Clock, cost: Callable[[list[tuple[int, int]]], float], context_length: int) -> None:
        self.clock, self.cost, self.context_length = clock, cost, context_length
        self.num_tokens = 0

    def forward(self, token_ids, spans, lanes, *, logit_rows, observer=None):
        """Zeros, with the last ordinary token a little likelier."""
        bounds = [spans.bounds(s) for s in range(spans.num)]
        self.clock.now += self.cost([(start, end - first) for first, end, start in bounds])
        self.num_tokens += len(token_ids)
        logits = torch.zeros(len(logit_rows), VOCAB)
        logits[:, 1] = 1.0
        return logits


def counting_engine(
    cost: Callable[[list[tuple[int, int]]], float] = lambda pieces: 1.0,
    *,
    context_length: int = 50_000,
    **options: object,
) -> Engine:
    """An engine around a CountingModel; blocks of 16 tokens, room for all that fits into 200,000."""
    options.setdefault("default_block_tokens", 16)
    options.setdefault("cache_tokens", 200_000)
    clock = Clock()
    model = CountingModel(clock, cost, context_length)
    return Engine(model, Alphabet(), EngineConfig(**options), clock=clock)  # type: ignore[arg-type]

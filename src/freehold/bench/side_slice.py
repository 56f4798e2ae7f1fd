"""A slice of MiniMax-M3 inside its own process, so that its memory can be told from the rest."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, cast

from freehold.bench.random_m3 import Letters
from freehold.bench.timeline import Timeline
from freehold.bench.traffic import cache_elements_read, weight_nbytes, weight_nbytes_read
from freehold.core.config import EngineConfig
from freehold.engine.engine import Engine
from freehold.kernels import using_threads
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.compute import compute_for
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.streamed_experts import StreamStats
from freehold.model.tokenizer import Tokenizer


class SliceSide:
    """Holds an engine over the slice."""

    def load(self, *, path: str, expert_budget: int | None, context: int, threads: int) -> dict[str, Any]:
        """Loads it; the seconds, and the bytes of its weights in memory, and those that a token reads there."""
        self._threads = using_threads(threads)
        self._threads.__enter__()
        start = time.perf_counter()
        with open_checkpoint(path) as checkpoint:
            model = MiniMaxM3.from_checkpoint(checkpoint, compute_for("native")[0], expert_budget=expert_budget)
        seconds = time.perf_counter() - start
        self._model, config = model, EngineConfig(cache_tokens=context, kv_dtype="bfloat16")
        self._engine = Engine(model, cast(Tokenizer, Letters()), config)
        cache = model.expert_cache
        return {
            "load_seconds": seconds,
            "weight_nbytes": weight_nbytes(model),
            "weight_nbytes_read": weight_nbytes_read(model),
            "expert_places": None if cache is None else cache.num_places,
        }

    def answer(self, *, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Greedy tokens with their times, what was read of experts for the prompt and for the answer, and what a token
        at its end reads of K, V and index keys, in bytes."""
        timeline = Timeline(self._engine)
        begin = self._stats()
        timing = timeline.submit(prompt, new_tokens)
        timeline.run(lambda: bool(timing.tokens))
        middle = self._stats()
        timeline.run()
        return {
            "first_token_seconds": timing.first_token_seconds,
            "decode_seconds": timing.tokens[-1] - timing.tokens[0],
            "token_ids": timing.token_ids,
            "prefill_experts": _difference(middle, begin),
            "decode_experts": _difference(self._stats(), middle),
            "cache_nbytes_read": 2 * cache_elements_read(self._model, len(prompt) + new_tokens),
        }

    def _stats(self) -> StreamStats:
        cache = self._model.expert_cache
        return StreamStats() if cache is None else StreamStats(**asdict(cache.stats))


def _difference(some: StreamStats, others: StreamStats) -> dict[str, float]:
    after, before = asdict(some), asdict(others)
    return {name: after[name] - before[name] for name in after}

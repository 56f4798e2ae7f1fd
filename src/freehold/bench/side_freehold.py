"""Freehold's side of a comparison, inside its own process; the other one too, where every block is read to compare."""

from __future__ import annotations

import time
from typing import Any

import torch

from freehold.bench.traffic import cache_elements_read, weight_nbytes, weight_nbytes_read
from freehold.core.errors import FreeholdError
from freehold.core.events import FinishEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.engine.llm import LLM
from freehold.model.llama import Llama
from freehold.model.minimax_m3 import MiniMaxM3


class FreeholdSide:
    """Holds an `LLM`. Messages and answers are JSON values."""

    def load(
        self,
        *,
        path: str,
        context: int,
        threads: int,
        kv_dtype: str,
        activations: str,
        index: str = "none",
        allow_dense: bool = False,
    ) -> dict[str, Any]:
        """Loads the model with room for one sequence of `context` tokens.

        index, allow_dense: as in `EngineConfig`. A rival reads everything, so a branch that comes with Freehold stays
        out, for both sides to compute the same. Gives the seconds, a description, and what prompts can be made of: the
        vocabulary and its special tokens.
        """
        torch.set_num_threads(threads)
        start = time.perf_counter()
        options: dict[str, Any] = {"threads": threads, "kv_dtype": kv_dtype, "activations": activations}
        self.llm = LLM(path, index=index, allow_dense=allow_dense, cache_tokens=context, **options)
        seconds = time.perf_counter() - start
        model = self.model
        return {
            "load_seconds": seconds,
            "description": self.llm.description,
            "context_length": self.llm.context_length,
            "vocab_size": model.vocab_size,
            "special_ids": sorted(self.llm.tokenizer.special_ids),
            "weight_nbytes": weight_nbytes(model),
            "weight_nbytes_read": weight_nbytes_read(model),
        }

    @property
    def model(self) -> Llama | MiniMaxM3:
        """The loaded model."""
        model = self.llm.engine.model
        assert isinstance(model, (Llama, MiniMaxM3)), type(model)
        return model

    def answer(self, *, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Greedy tokens, however soon the model would end; times from the request to its first and last token.

        Raises FreeholdError if a part of the prompt was cached: a prefill must compute all of it.
        """
        params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        tokens: list[int] = []
        first = last = start = time.perf_counter()
        for event in self.llm.events(prompt, params):
            if isinstance(event, TokenEvent):
                last = time.perf_counter()
                if not tokens:
                    first = last
                tokens.append(event.token_id)
            elif isinstance(event, FinishEvent):
                if event.error:
                    raise FreeholdError(event.error)
                if event.usage.cached_tokens:
                    raise FreeholdError(f"{event.usage.cached_tokens} prompt tokens were cached; prompts must differ")
        return {"first_token_seconds": first - start, "decode_seconds": last - first, "token_ids": tokens}

    def cache_elements(self, *, depth: int) -> dict[str, Any]:
        """See `freehold.bench.traffic.cache_elements_read`."""
        return {"elements": cache_elements_read(self.model, depth)}

"""transformers' side of a comparison, inside its own process; imports nothing else that would add to its memory."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers


class TransformersSide:
    """Holds a model in transformers and drives it by its own forward passes, as `generate` does."""

    def load(self, *, path: str, context: int, threads: int, dtype: str, chunk_tokens: int) -> dict[str, Any]:
        """Loads a directory. context: not needed, its cache grows. chunk_tokens: of a pass over the prompt; 0: all."""
        torch.set_num_threads(threads)
        start = time.perf_counter()
        loader: Any = transformers.AutoModelForCausalLM
        self.model = loader.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        seconds = time.perf_counter() - start
        self.chunk_tokens = chunk_tokens
        passes = f"chunks of {chunk_tokens}" if chunk_tokens else "the prompt in one pass"
        return {
            "load_seconds": seconds,
            "description": f"transformers {transformers.__version__}, {dtype}, SDPA, {passes}",
        }

    @torch.inference_mode()
    def answer(self, *, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Greedy tokens, however soon the model would end; times from the request to its first and last token."""
        start = time.perf_counter()
        cache = None
        step = self.chunk_tokens or len(prompt)
        for begin in range(0, len(prompt), step):
            logits, cache = self._forward(prompt[begin : begin + step], cache)
        tokens = [int(logits.argmax())]
        first = time.perf_counter()
        while len(tokens) < new_tokens:
            logits, cache = self._forward(tokens[-1:], cache)
            tokens.append(int(logits.argmax()))
        last = time.perf_counter()
        return {"first_token_seconds": first - start, "decode_seconds": last - first, "token_ids": tokens}

    def _forward(self, tokens: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        out = self.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1], out.past_key_values

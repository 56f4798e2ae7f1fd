"""llama.cpp's side of a comparison, inside its own process; imports nothing that would add to its memory."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp

from freehold.core.errors import FreeholdError


class LlamaCppSide:
    """Holds a model in llama.cpp and drives it by its own calls, without the cost of the Python package's loop."""

    def load(
        self, *, path: str, context: int, threads: int, batch_tokens: int, flash_attention: bool
    ) -> dict[str, Any]:
        """Loads a GGUF file with room for `context` tokens; K and V in float16, its default.

        batch_tokens: its n_batch and n_ubatch. threads: for prefill and decode alike.
        """
        start = time.perf_counter()
        self.llama = llama_cpp.Llama(
            model_path=path,
            n_ctx=context,
            n_batch=batch_tokens,
            n_ubatch=batch_tokens,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash_attention,
            verbose=False,
        )
        seconds = time.perf_counter() - start
        self.batch_tokens = batch_tokens
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        attention = "on" if flash_attention else "off"
        return {
            "load_seconds": seconds,
            "description": f"llama.cpp (llama-cpp-python {llama_cpp.__version__}), flash attention {attention}, "
            f"n_batch and n_ubatch {batch_tokens}, K and V float16",
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def answer(self, *, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Greedy tokens, however soon the model would end; times from the request to its first and last token."""
        context = self.llama.ctx
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        start = time.perf_counter()
        for begin in range(0, len(prompt), self.batch_tokens):
            self._decode(prompt[begin : begin + self.batch_tokens])
        tokens = [llama_cpp.llama_sampler_sample(self.sampler, context, -1)]
        first = time.perf_counter()
        while len(tokens) < new_tokens:
            self._decode(tokens[-1:])
            tokens.append(llama_cpp.llama_sampler_sample(self.sampler, context, -1))
        last = time.perf_counter()
        return {"first_token_seconds": first - start, "decode_seconds": last - first, "token_ids": tokens}

    def _decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_token)), len(tokens))
        status = llama_cpp.llama_decode(self.llama.ctx, batch)
        if status != 0:
            raise FreeholdError(f"llama.cpp's llama_decode returned {status} for {len(tokens)} tokens")

"""Print a continuation while it is computed. `freehold pull` fetches the default model, once."""

from __future__ import annotations

import sys

import freehold

prompt = " ".join(sys.argv[1:]) or "The first thing to know about owning your own hardware is"

with freehold.LLM("smollm2-135m") as llm:
    print(prompt, end="")
    for piece in llm.generate(prompt, max_tokens=40, temperature=0, stream=True):
        print(piece, end="", flush=True)
print()

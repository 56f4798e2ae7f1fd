"""Prompts for the tiny M3 shapes, stored, because they were chosen to hold no decision close to a tie.

`tests/golden/make_golden.py prompts` finds and writes them; `m3_oracle` says what "close" means.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

LENGTHS = (1, 127, 128, 129, 2047, 2048, 2049, 2500, 5000)
"""Prompt lengths: one token, around one block of 128, around M3's dense window of 2,048, and beyond it."""
CONTINUATION = 64
"""Greedy tokens after each prompt."""
PROMPTS_FILE = Path(__file__).parents[1] / "golden" / "prompts.safetensors"


@cache
def _stored() -> dict[str, Any]:
    return dict(load_file(PROMPTS_FILE))


def prompt(shape: str, length: int) -> list[int]:
    """The prompt of `length` (one of LENGTHS) for a shape of `tiny_m3.SHAPES`: token ids below 256."""
    stored = _stored()
    stream = stored[shape][: length - 1].tolist()
    return [*stream, int(stored[f"{shape}.last"][LENGTHS.index(length)])]

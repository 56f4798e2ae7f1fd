"""How many threads compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from freehold.kernels.library import set_threads
from freehold.kernels.library import threads as kernel_threads


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """torch and the kernels use so many threads inside, threads that begin there too, and what they used before
    afterwards."""
    before = torch.get_num_threads(), kernel_threads()
    torch.set_num_threads(threads)
    set_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        set_threads(before[1])

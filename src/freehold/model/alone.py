"""Whose the processor's cores are while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from freehold.model.base import Model


@contextmanager
def kernels_alone(model: Model) -> Iterator[None]:
    """Keeps torch's operators on the calling thread if the model computes with our kernels. Beside these they are
    small, but some wake torch's threads all the same (an index of 4,096 elements does), which stay awake for
    milliseconds on the kernels' cores."""
    if model.compute_name != "native":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

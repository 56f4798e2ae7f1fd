"""Memory for large tensors."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch

_LEAST = 4 * 2**20  # smaller tensors gain nothing from large pages


def large_empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Like torch.empty, on large pages where the system has them: long scans and scattered reads need fewer address
    translations. Its memory is zero, and is handed out only as it is written."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(*shape, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages: the memory is as good, only slower
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)

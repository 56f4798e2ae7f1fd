"""Memory for large tensors, and for the many that are large together."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading

import torch

_LEAST = 64 * 2**10  # smaller tensors gain nothing from large pages
_ALONE = 4 * 2**20  # from here on a tensor has pages of its own
_SHARED = 32 * 2**20
_LINE = 64

_lock = threading.Lock()
_open: tuple[mmap.mmap, int] | None = None  # pages that smaller tensors share, and how much of them is given away


def large_empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Like torch.empty, on large pages where the system has them: long scans and scattered reads need fewer address
    translations. Its memory is zero, and is handed out only as it is written.

    Tensors below 4 MiB share pages; these go back to the system when the last of the tensors is gone.
    """
    global _open
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(*shape, dtype=dtype)
    if nbytes >= _ALONE:
        return torch.frombuffer(_pages(nbytes), dtype=dtype).view(*shape)
    with _lock:
        if _open is None or _open[1] + nbytes > _SHARED:
            _open = _pages(_SHARED), 0
        pages, begin = _open
        _open = pages, begin + (nbytes + _LINE - 1) // _LINE * _LINE
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape), offset=begin).view(*shape)


def _pages(nbytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages: the memory is as good, only slower
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages

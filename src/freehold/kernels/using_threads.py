"""How many threads compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident

import torch

from freehold.kernels.library import set_threads
from freehold.kernels.library import threads as kernel_threads


@dataclass(eq=False, slots=True)
class _Use:
    threads: int
    thread: int = field(default_factory=get_ident)


class _Uses:
    """Which parts of the process use a number of threads of their own now. torch has one for each thread, and the
    kernels have one for all: what stood before the first is put back behind the last, in whatever order they end."""

    def __init__(self) -> None:
        self._lock, self._now = Lock(), list[_Use]()
        self._before = 0, 0

    def begin(self, threads: int) -> _Use:
        with self._lock:
            before = torch.get_num_threads(), kernel_threads()
            set_threads(threads)
            torch.set_num_threads(threads)
            if not self._now:
                self._before = before
            self._now.append(_Use(threads))
            return self._now[-1]

    def end(self, use: _Use) -> None:
        with self._lock:
            self._now.remove(use)
            around = [other.threads for other in self._now if other.thread == use.thread]
            torch.set_num_threads(around[-1] if around else self._before[0])
            set_threads(self._now[-1].threads if self._now else self._before[1])


_USES = _Uses()


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """torch, in this thread and in those that begin inside, and the kernels use so many threads inside, and what they
    used before afterwards. Several threads may do so at once: the kernels then use what the latest asked for."""
    use = _USES.begin(threads)
    try:
        yield
    finally:
        _USES.end(use)

"""How many threads compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock, get_ident

import torch

from freehold.kernels import library


@dataclass(eq=False, slots=True)
class _Use:
    """torch_before: of its thread."""

    threads: int
    thread: int = field(default_factory=get_ident)
    torch_before: int = 0


class _Uses:
    """Which parts of the process use a number of threads of their own now. The kernels have one number for all: what
    stood before the first is put back behind the last, in whatever order they end. torch has one for each thread, which
    takes over what any thread set last when it first asks: found as another's use has it, it is what was before that.
    """

    def __init__(self) -> None:
        self._lock, self._now = RLock(), list[_Use]()
        self._before = 0, 0

    def begin(self, use: _Use) -> None:
        with self._lock:
            before = torch.get_num_threads(), library.threads()
            library.set_threads(use.threads)
            torch.set_num_threads(use.threads)
            if not self._now:
                self._before = before
            taken_over = self._now and not self._around(use) and before[0] == self._now[-1].threads
            use.torch_before = self._before[0] if taken_over else before[0]
            self._now.append(use)

    def end(self, use: _Use) -> None:
        """Nothing, if it has not begun."""
        with self._lock:
            if use in self._now:
                self._now.remove(use)
                torch.set_num_threads(use.torch_before)
                library.set_threads(self._now[-1].threads if self._now else self._before[1])

    def _around(self, use: _Use) -> bool:
        return any(other.thread == use.thread for other in self._now)


_USES = _Uses()


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """torch, in this thread and in those that begin inside, and the kernels use so many threads inside, and what they
    used before afterwards. Several threads may do so at once: the kernels then use what the latest asked for."""
    use = _Use(threads)
    try:
        _USES.begin(use)
        yield
    finally:
        _USES.end(use)

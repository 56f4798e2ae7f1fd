"""Pieces of work side by side."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import torch

from freehold import kernels

_MOST = 8
"""Pieces at once: each has memory of its own."""

T = TypeVar("T")


class _StoppedError(Exception):
    """Of a piece that goes on no longer."""


def side_by_side(work: Callable[[int, Callable[[], None]], T], count: int) -> list[T]:
    """What work(number, go_on) returns for each number below `count`; so many at once as torch and the kernels may use
    threads, up to eight.

    Each piece has one thread, of torch and of the kernels too: small operators take less time so than where several
    threads share each of them, and what they compute does not depend on it. A piece calls go_on() now and then, which
    ends it once another has failed, whose error is raised, or at Ctrl-C, which counts when all have ended.
    """
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise _StoppedError

    def piece_of(number: int) -> T:
        go_on()
        # A thread takes over what any thread set last, once, when torch first asks in it; what it sets before is lost.
        torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work(number, go_on)
        except BaseException:
            stopped.set()  # before this thread begins another piece
            raise

    workers = max(1, min(torch.get_num_threads(), kernels.threads(), count, _MOST))
    with _interrupts_later(stopped.set), kernels.using_threads(1), ThreadPoolExecutor(workers) as pool:
        pieces: list[Future[T]] = []
        try:
            for number in range(count):
                pieces.append(pool.submit(piece_of, number))
            wait(pieces, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            for piece in pieces:
                piece.cancel()
    for piece in pieces:
        _raise_error_of(piece)
    return [piece.result() for piece in pieces]


@contextmanager
def _interrupts_later(note: Callable[[], None]) -> Iterator[None]:
    """Calls note() at each Ctrl-C inside, and does what it does else only behind. However impatient a caller is: what
    the pieces alone may write is nobody else's before they have ended, and waiting for them cannot be interrupted
    safely, for a lock that it takes may be kept."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    noted: list[FrameType | None] = []

    def later(_number: int, frame: FrameType | None) -> None:
        noted.append(frame)
        note()

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if noted:
            before(signal.SIGINT, noted[0])


def _raise_error_of(piece: Future[T]) -> None:
    error = None if piece.cancelled() else piece.exception()
    if error is not None and not isinstance(error, _StoppedError):
        raise error

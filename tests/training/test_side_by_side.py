"""Pieces of work side by side: results in order, the first error ends all, and threads are as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from freehold import kernels
from freehold.training.side_by_side import side_by_side

GoOn = Callable[[], None]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = kernels.threads(), torch.get_num_threads()
    kernels.set_threads(2)
    torch.set_num_threads(2)
    yield
    assert (kernels.threads(), torch.get_num_threads()) == (2, 2)
    kernels.set_threads(before[0])
    torch.set_num_threads(before[1])


def test_results_are_in_order_and_come_from_two_at_once() -> None:
    together = threading.Barrier(2, timeout=20)

    def work(number: int, go_on: GoOn) -> tuple[int, int, int]:
        if number < 2:
            together.wait()
        go_on()
        return number, kernels.threads(), torch.get_num_threads()

    assert side_by_side(work, 5) == [(number, 1, 1) for number in range(5)]


def test_nothing_is_done_of_nothing() -> None:
    assert side_by_side(lambda number, go_on: number, 0) == []


def test_an_error_ends_the_others_and_is_raised() -> None:
    begun: list[int] = []
    other = threading.Event()

    def work(number: int, go_on: GoOn) -> None:
        begun.append(number)
        if number == 1:
            other.wait(20)
            raise ValueError("the second")
        other.set()
        _go_on_for_long(go_on)

    with pytest.raises(ValueError, match="the second"):
        side_by_side(work, 9)
    assert sorted(begun) == [0, 1]


def test_an_interrupted_caller_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    begun = threading.Barrier(3, timeout=20)

    def work(number: int, go_on: GoOn) -> None:
        begun.wait()
        try:
            _go_on_for_long(go_on)
        finally:
            ended.append(number)

    def interrupted(*_: object, **__: object) -> None:
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr("freehold.training.side_by_side.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, 9)
    assert sorted(ended) == [0, 1]


def test_pieces_that_cannot_begin_end_those_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    ended: list[str] = []

    def work(number: int, go_on: GoOn) -> None:
        begun.set()
        try:
            _go_on_for_long(go_on)
        except Exception as error:
            ended.append(type(error).__name__)
            raise

    class Full(ThreadPoolExecutor):
        def submit(self, *piece: object) -> Future[None]:  # type: ignore[override]
            if self._threads and begun.wait(20):
                raise RuntimeError("can't start new thread")
            return super().submit(*piece)  # type: ignore[arg-type]

    monkeypatch.setattr("freehold.training.side_by_side.ThreadPoolExecutor", Full)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        side_by_side(work, 9)
    assert ended == ["_StoppedError"]


def _go_on_for_long(go_on: GoOn) -> None:
    for _ in range(2000):
        go_on()
        time.sleep(0.01)
    raise AssertionError("went on")

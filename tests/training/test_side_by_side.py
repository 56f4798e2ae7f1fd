"""Pieces of work side by side: results in order, the first error ends all, and threads are as they were."""

from __future__ import annotations

import signal
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


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """As in a terminal: a process that a shell started in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def test_an_interrupted_caller_ends_all() -> None:
    ended = []
    begun = threading.Barrier(2, timeout=20)

    def work(number: int, go_on: GoOn) -> None:
        if begun.wait() == 0:
            signal.raise_signal(signal.SIGINT)
        try:
            _go_on_for_long(go_on)
        finally:
            ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, 9)
    assert sorted(ended) == [0, 1]


def test_an_impatient_caller_waits_for_the_end_too() -> None:
    """Interrupted again and again, also where pieces begin: nothing is computed any more once the caller goes on."""
    begun: list[int] = []
    ended: list[int] = []

    def work(number: int, go_on: GoOn) -> None:
        begun.append(number)
        for _ in range(30):  # a step
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)
        ended.append(number)

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *piece: object) -> Future[None]:  # type: ignore[override]
            found: Future[None] = super().submit(*piece)  # type: ignore[arg-type]
            while not begun:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
            return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("freehold.training.side_by_side.ThreadPoolExecutor", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            side_by_side(work, 9)
    assert ended
    assert sorted(ended) == sorted(begun)


def test_another_handler_of_interrupts_is_asked_when_all_have_ended() -> None:
    told: list[int] = []
    ended: list[int] = []

    def work(number: int, go_on: GoOn) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        ended.append(number)

    def handler(number: int, _frame: object) -> None:
        told.append(len(ended))

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert side_by_side(work, 1) == [None]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [1]


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


def test_a_piece_has_one_thread_whatever_others_set_meanwhile() -> None:
    """A thread of torch's begins with what was set last, by whom ever."""

    def work(number: int, go_on: GoOn) -> int:
        return torch.get_num_threads()

    class Late(ThreadPoolExecutor):
        def submit(self, *piece: object) -> Future[int]:  # type: ignore[override]
            torch.set_num_threads(3)
            return super().submit(*piece)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("freehold.training.side_by_side.ThreadPoolExecutor", Late)
        assert side_by_side(work, 4) == [1, 1, 1, 1]


def test_callers_at_once_put_back_what_was_before_the_first() -> None:
    """The first ends first, so that what the second found is not what was before."""
    inside, first_ended = threading.Barrier(2, timeout=20), threading.Event()
    behind: dict[str, tuple[int, int]] = {}

    def call(name: str) -> None:
        def work(number: int, go_on: GoOn) -> None:
            if number == 0:
                inside.wait()
                assert name == "first" or first_ended.wait(20)
            assert (kernels.threads(), torch.get_num_threads()) == (1, 1)

        side_by_side(work, 2)
        behind[name] = kernels.threads(), torch.get_num_threads()
        if name == "first":
            first_ended.set()

    threads = [threading.Thread(target=call, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert behind == {"first": (1, 2), "second": (2, 2)}


def _go_on_for_long(go_on: GoOn) -> None:
    for _ in range(2000):
        go_on()
        time.sleep(0.01)
    raise AssertionError("went on")

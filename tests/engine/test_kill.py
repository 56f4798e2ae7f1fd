"""kill -9 at any moment: the restart serves the same bits, and only open blocks are computed again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SESSIONS, TURNS, BLOCK = 3, 6, 16
TESTS = Path(__file__).parents[1]


class Holders:
    """Starts processes that hold sessions, and kills them."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._orders, self._said = server.stdin, server.stdout

    def run(self, store: Path, *, lines: int | None = None, seconds: float = 0.0) -> list[list[str]]:
        """What a process says that is killed so long after it said so many lines; None: it is left alone."""
        print(store, SESSIONS, TURNS, file=self._orders, flush=True)
        pid = int(self._said.readline().removeprefix("pid "))
        said: list[list[str]] = []
        while True:
            if len(said) == lines:
                time.sleep(seconds)
                with suppress(ProcessLookupError):  # it was done meanwhile
                    os.kill(pid, signal.SIGKILL)
            line = self._said.readline().split()
            if line[0] == "ended":
                assert int(line[1]) in (0, -signal.SIGKILL), "a process failed; it says why above"
                return said
            said.append(line)


@contextmanager
def holders() -> Iterator[Holders]:
    with subprocess.Popen(
        [sys.executable, "-m", "support.session_child"],
        cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        yield Holders(server)
        assert server.stdin is not None
        server.stdin.close()


def samples(lines: list[list[str]]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(a[0], a[1]): (a[2], a[3]) for a in lines if len(a) == 4 and a[0].isdigit()}


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_answers_after_a_kill_have_the_same_bits(tmp_path, kills):
    draw = random.Random(kills)
    furthest: dict[str, int] = {}  # tokens of each session that were certainly computed
    stores, store = 1, tmp_path / "store 0"
    with holders() as started:
        began = time.monotonic()
        whole = started.run(tmp_path / "never killed")
        seconds = (time.monotonic() - began) / len(whole)
        assert whole[-1] == ["done"]
        expected = samples(whole)
        for _ in range(kills):
            lines = started.run(store, lines=draw.randrange(len(whole)), seconds=draw.uniform(0, 2 * seconds))
            got = samples(lines)
            assert got.items() <= expected.items(), "an answer differs from that of a run that was never killed"
            check_found(lines, furthest)
            for session, position in got:
                furthest[session] = max(furthest.get(session, 0), int(position))
            if draw.random() < 0.2:  # what is there soon covers everything
                store, furthest, stores = tmp_path / f"store {stores}", {}, stores + 1
        last = started.run(store)
    assert last[-1] == ["done"]
    assert samples(last) == expected


def check_found(lines: list[list[str]], furthest: dict[str, int]) -> None:
    """Of each session's first prompt, all full blocks that were computed before are found but for those of the step
    that was running: a chunk of 64 tokens."""
    first = {}
    for line in lines:
        if line[0] == "prompt":
            first.setdefault(line[1], (int(line[2]), int(line[3])))
    for session, (prompt, found) in first.items():
        known = min(furthest.get(session, 0), prompt - 1) // BLOCK * BLOCK
        assert found >= known - 64, (session, prompt, found, known)

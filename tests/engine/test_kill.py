"""kill -9 at any moment: the restart serves the same bits, and only open blocks are computed again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

KILLS = 200 if os.environ.get("FREEHOLD_PROVE") else 3
SESSIONS, TURNS, BLOCK = 3, 6, 16
TESTS = Path(__file__).parents[1]


def child(store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.session_child", str(store), str(SESSIONS), str(TURNS)],
        cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lines_of(process: subprocess.Popen[str]) -> list[list[str]]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return [line.split() for line in out.splitlines(keepends=True) if line.endswith("\n")]


def samples(lines: list[list[str]]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(a[0], a[1]): (a[2], a[3]) for a in lines if len(a) == 4 and a[0].isdigit()}


def test_answers_after_a_kill_have_the_same_bits(tmp_path):
    began = time.monotonic()
    whole = lines_of(child(tmp_path / "never killed"))
    seconds = time.monotonic() - began
    assert whole[-1] == ["done"]
    expected = samples(whole)
    draw = random.Random(0)
    killed = finished = 0
    furthest: dict[str, int] = {}  # tokens of each session that were certainly computed
    store = tmp_path / "store 0"
    while killed < KILLS:
        process = child(store)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        if process.poll() is None:
            process.kill()
            killed += 1
        lines = lines_of(process)
        got = samples(lines)
        assert got.items() <= expected.items(), "an answer differs from that of a run that was never killed"
        check_found(lines, furthest)
        for session, position in got:
            furthest[session] = max(furthest.get(session, 0), int(position))
        if lines and lines[-1] == ["done"]:
            finished += 1
            store, furthest = tmp_path / f"store {finished}", {}
    last = lines_of(child(store))
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

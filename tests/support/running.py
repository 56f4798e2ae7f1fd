"""The `freehold` command in a process of its own, as people run it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "freehold.cli.main"]


def freehold(*arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a subcommand to its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, input=typed, timeout=300)


@dataclass(frozen=True)
class RunningServer:
    """Its OpenAI base URL, and the request that it prints to be pasted."""

    base_url: str
    hint: str


@contextmanager
def running_server(
    *arguments: str,
    log: Path,
    seconds: float = 120.0,
    command: Sequence[str] = COMMAND,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """`freehold serve` on a free port, when it answers. SIGINT ends it, with status 0.

    Without a --store-dir among the arguments it keeps no blocks: a test finds what it made itself, and nothing else.
    log: a file for the server's stderr; its end is part of the error when the server does not start.
    command: what runs the command line. environment: variables beside those of this process.
    """
    with log.open("w") as errors:
        kept = () if "--store-dir" in arguments else ("--no-store",)
        words = [*command, "serve", "--port", "0", *kept, *arguments]
        variables = {**os.environ, **(environment or {})}
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
    try:
        yield _announced(process, log, seconds)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _announced(process: subprocess.Popen[str], log: Path, seconds: float) -> RunningServer:
    lines: queue.Queue[str] = queue.Queue()
    stdout = process.stdout
    assert stdout is not None

    def read() -> None:
        for line in stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    base_url = ""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (process.poll() is None or not lines.empty()):
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            continue
        if line.startswith("Serving "):
            base_url = next(word for word in line.split() if word.startswith("http"))
        if line.startswith("Try: "):
            return RunningServer(base_url, line.removeprefix("Try: ").rstrip("\n"))
    raise AssertionError(f"the server did not start:\n{log.read_text()[-2000:]}")

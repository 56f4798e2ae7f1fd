"""The parent's end of a worker: start it, call it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from freehold.core.errors import FreeholdError

_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Worker:
    """A side in a process of its own; see `freehold.bench.worker`. Use it as a context manager, or call `close`."""

    def __init__(self, side: str, *, command: list[str] | None = None) -> None:
        self.side = side
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "freehold.bench.worker", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_environment(),
        )

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Sends one message and waits for the answer. Raises FreeholdError if it is an error or the process died."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise FreeholdError(f"{self.side}: its process ended with status {process.wait()}.{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise FreeholdError(f"{self.side}: {answer['error']}")
        value = answer["value"]
        assert isinstance(value, dict)
        return value

    def close(self) -> None:
        """Ends the process and waits for it; twice is no error."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # it died with a message unread
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace").strip()
        return f" Its last words:\n{text[-2000:]}" if text else ""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _environment() -> dict[str, str]:
    """The user's, without what would let an idle worker's threads take the machine from the other side."""
    kept = {name: value for name, value in os.environ.items() if name not in _SPINNING}
    # Python 3.11 and later then leave the current directory out of sys.path, as the `freehold` command does.
    return {**kept, "PYTHONSAFEPATH": "1"}

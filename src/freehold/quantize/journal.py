"""How far a checkpoint is written, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freehold.core.errors import ArgumentError, LoadError
from freehold.loading.claim import claimed
from freehold.loading.quoting import quoted


@dataclass(frozen=True, slots=True)
class Done:
    """A tensor that is on the disk. squared, energy: of the error, see `values.Error`."""

    name: str
    kind: str
    squared: float
    energy: float


class Journal:
    """A file of JSON lines: first what is made from what, then a line for each tensor, in order.

    A line is written after its tensor is on the disk. What follows the last whole line, as a crash or a full disk
    leaves it, is cut off. One process at a time has the journal open, until it closes it or ends.
    """

    def __init__(self, path: Path, task: dict[str, Any]) -> None:
        """task: what is made from what.

        Raises ArgumentError if another task was begun there, or the file is no journal, LoadError if another process is
        at work there.
        """
        self.path = path
        self.done: list[Done] = []
        if path.exists() and not path.is_file():  # a pipe would never end
            raise _foreign(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            if not claimed(self._file, path):
                raise LoadError(f"{path}: another process is quantising to this place; wait until it is done")
            self._ends = self._read(task)
            self.cut(len(self.done))
        except BaseException:
            self.close()
            raise

    def _read(self, task: dict[str, Any]) -> list[int]:
        """Fills `done`. Where the first line ends, and that of each tensor; a journal without a first line gets one."""
        *lines, torn = self.path.read_bytes().split(b"\n")  # what follows the last line's end was cut short
        if not lines:
            if not _encoded(task).startswith(torn):
                raise _foreign(self.path)
            os.ftruncate(self._file, 0)
            return [self._append(_encoded(task))]
        begun = _parsed(lines[0])
        if begun is None or not begun.keys() >= task.keys():
            raise _foreign(self.path)
        if begun != task:
            differing = sorted(key for key in begun.keys() | task.keys() if begun.get(key) != task.get(key))
            raise ArgumentError(
                f"{self.path}: another quantisation was begun here, with another {', '.join(differing)}"
                f" ({quoted({key: begun.get(key) for key in differing})}); finish it, or remove what it left"
            )
        ends = [len(lines[0]) + 1]
        for line in lines[1:]:
            entry = _parsed(line)
            if entry is None or entry.keys() != Done.__dataclass_fields__.keys():
                break
            self.done.append(Done(**entry))
            ends.append(ends[-1] + len(line) + 1)
        return ends

    def cut(self, count: int) -> None:
        """Forgets all tensors but the first `count`."""
        os.ftruncate(self._file, self._ends[count])
        del self.done[count:], self._ends[count + 1 :]

    def add(self, done: Sequence[Done]) -> None:
        """These tensors are on the disk."""
        lines = [_encoded(asdict(one)) for one in done]
        self._append(b"".join(lines))
        self.done += done
        for line in lines:
            self._ends.append(self._ends[-1] + len(line))

    def _append(self, data: bytes) -> int:
        """Bytes that were written. Not buffered: what a full disk refused must not come after all."""
        done = 0
        while done < len(data):
            done += os.write(self._file, data[done:])
        os.fsync(self._file)
        return done

    def close(self) -> None:
        """Another process may go on with it."""
        os.close(self._file)


def _foreign(path: Path) -> ArgumentError:
    return ArgumentError(
        f"{path}: would be the journal of this quantisation, and is no such journal; move it, or name another place"
    )


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

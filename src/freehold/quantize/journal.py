"""How far a checkpoint is written, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freehold.core.errors import ArgumentError
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

    A line is written after its tensor is on the disk. One that was cut short by a crash is forgotten.
    """

    def __init__(self, path: Path, task: dict[str, Any]) -> None:
        """task: what is made from what. Raises ArgumentError if another task was begun there."""
        self.path = path
        self.done: list[Done] = []
        if path.exists():
            self._read(task)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append([task])

    def _read(self, task: dict[str, Any]) -> None:
        lines = self.path.read_bytes().split(b"\n")
        whole = lines[:-1]  # what follows the last line's end was cut short
        begun = _parsed(whole[0]) if whole else None
        if begun is not None and begun != task:
            differing = sorted(key for key in begun.keys() | task.keys() if begun.get(key) != task.get(key))
            raise ArgumentError(
                f"{self.path}: another quantisation was begun here, with another {', '.join(differing)}"
                f" ({quoted({key: begun.get(key) for key in differing})}); finish it, or remove what it left"
            )
        entries = [] if begun is None else [_parsed(line) for line in whole[1:]]
        for entry in entries:
            if entry is None or entry.keys() != Done.__dataclass_fields__.keys():
                break
            self.done.append(Done(**entry))
        self.path.write_bytes(_encoded([task, *map(asdict, self.done)]))

    def add(self, done: Sequence[Done]) -> None:
        """These tensors are on the disk."""
        self._append([asdict(one) for one in done])
        self.done += done

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        with self.path.open("ab") as file:
            file.write(_encoded(lines))
            file.flush()
            os.fsync(file.fileno())


def _encoded(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

"""Checkpoints that leave the machine's ledger for a place where its keeper cannot change them."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.core.errors import ConfigError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import LedgerFiles, write_whole

_COMMAND_SECONDS = 60.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """When and where checkpoints are exported.

    records: after so many new records. seconds: after so long, if there are new ones.
    directory: a place elsewhere, such as a mounted share; one file for each checkpoint, named after ledger and size.
    command: started with the checkpoint on its standard input; anything but status 0 is a failure.
    """

    records: int = 1000
    seconds: float = 3600.0
    directory: Path | None = None
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.records < 1 or not self.seconds > 0:
            raise ConfigError(
                f"checkpoints are exported every {self.records} records or {self.seconds:g} seconds; "
                "both must be above 0"
            )


class Exports:
    """Exports from a thread of its own: a slow or failing place holds up no record. What fails is said, and tried again
    with the next checkpoint and at the end."""

    def __init__(self, options: ExportOptions, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._changed = threading.Condition()
        self._newest: Checkpoint | None = None
        self._exported = self._failed_at = 0
        self._closing = False
        self._files: LedgerFiles | None = None
        self._thread = threading.Thread(target=self._work, name="freehold-checkpoints", daemon=True)

    def start(self, files: LedgerFiles) -> None:
        """Begin, for one ledger."""
        self._files = files
        own = files.own_checkpoints()
        self._exported = int(own[-1].name) if own else 0
        self._newest = files.head()
        self._thread.start()

    def offer(self, head: Checkpoint) -> None:
        """The ledger has grown to this. Returns at once."""
        with self._changed:
            self._newest = head
            if head.size - self._exported >= self._options.records:
                self._changed.notify()

    def close(self) -> None:
        """Export what is new, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _due(self) -> bool:
        newest = self._newest
        if self._closing or newest is None:
            return self._closing
        # After a failure the next try waits for further records, not for the same ones.
        return newest.size - self._exported >= self._options.records and newest.size > self._failed_at

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._due, timeout=self._options.seconds)
                newest, closing = self._newest, self._closing
            if newest is not None and newest.size > self._exported:
                if self._export(newest):
                    self._exported = newest.size
                else:
                    self._failed_at = newest.size
            if closing:
                return

    def _export(self, checkpoint: Checkpoint) -> bool:
        assert self._files is not None
        try:
            export(self._files, checkpoint, self._options.directory, self._options.command)
        except (OSError, subprocess.SubprocessError) as error:
            self._say(f"The checkpoint of {checkpoint.size} records was not exported: {error}")
            return False
        return True


def checkpoint_name(origin: str, size: int | None) -> str:
    """The name of a checkpoint's file. size: None: a pattern for all of them."""
    digits = "[0-9]" * 12 if size is None else f"{size:012d}"
    return f"{_UNSAFE.sub('-', origin)}-{digits}.checkpoint"


def export(files: LedgerFiles, checkpoint: Checkpoint, directory: Path | None, command: Sequence[str]) -> Path | None:
    """Put a checkpoint into a directory and hand it to a command, as far as they are given; then keep it beside the
    ledger too. The file in the directory, if there is one. Raises OSError or SubprocessError."""
    place = None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        place = directory / checkpoint_name(files.origin, checkpoint.size)
        write_whole(place, checkpoint.text.encode(), durable=True)
    if command:
        subprocess.run(
            list(command),
            input=checkpoint.text.encode(),
            check=True,
            timeout=_COMMAND_SECONDS,
            stdout=subprocess.DEVNULL,
        )
    write_whole(files.path / "checkpoints" / f"{checkpoint.size:012d}", checkpoint.text.encode(), durable=True)
    return place

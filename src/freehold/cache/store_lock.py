"""One process at a time writes to a store's directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from freehold.cache.store_writer import is_disk_full
from freehold.core.errors import StoreLockedError

_PID_NAME = "pid"


class StoreLock:
    """Held from construction to `close`, or until the process ends, however it ends.

    The directory itself is locked; the file `pid` in it only says by whom. Raises StoreLockedError if another has
    it, OSError if the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pid_file = directory / _PID_NAME
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreLockedError(
                    f"the block store {directory} is in use by process {self._holder()}; stop that process, or use"
                    " another directory"
                ) from None
            self._say_who()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _say_who(self) -> None:
        """Writes the file `pid`. Raises OSError, but not for a full disk: there is less to write on it, not nothing."""
        try:
            self._pid_file.write_text(f"{os.getpid()}\n", "ascii")
        except OSError as error:
            if not is_disk_full(error):
                raise

    def _holder(self) -> str:
        try:
            return str(int(self._pid_file.read_text("ascii")))
        except (OSError, ValueError):
            return "(unknown)"

    def close(self) -> None:
        """Lets others in."""
        with contextlib.suppress(OSError):
            self._pid_file.unlink()
        os.close(self._descriptor)

"""What was found broken: said once in the log, and kept for whoever asks."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

_log = logging.getLogger("freehold.cache")
_KEPT_EVENTS = 1000
_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_our_limit(error: Exception) -> bool:
    """Whether an error only says that the process has no file descriptors or memory left: nothing of what it was to
    read."""
    return isinstance(error, OSError) and error.errno in _OUR_LIMITS


@dataclass(frozen=True, slots=True)
class DamageEvent:
    """where: the file, and the block or part in it. what: what is wrong, and what became of it. time: seconds
    since 1970."""

    where: str
    what: str
    time: float


class DamageLog:
    """Every damage since the start. Safe to use from several threads.

    num_events counts all; `events` keeps the last 1000.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self._events: deque[DamageEvent] = deque(maxlen=_KEPT_EVENTS)
        self._lock = threading.Lock()

    @property
    def events(self) -> tuple[DamageEvent, ...]:
        """The last events, oldest first."""
        with self._lock:
            return tuple(self._events)

    def report(self, where: str, what: str) -> None:
        """Notes one event and writes it to the log `freehold.cache`."""
        with self._lock:
            self.num_events += 1
            self._events.append(DamageEvent(where, what, time.time()))
        _log.warning("%s: %s", where, what)

"""Where a server is in its life: serving, ending, or cutting off; and what still runs."""

from __future__ import annotations

from collections.abc import Callable


class Lifecycle:
    """Counts HTTP requests and remembers how to give up their streams. Lives on the event loop; `drain` may also be
    called from a signal handler."""

    def __init__(self) -> None:
        self.draining = False
        self.num_requests = 0
        self._cancels: dict[int, Callable[[], None]] = {}
        self._next = 0

    def drain(self) -> None:
        """From now on the server is not ready: no new work is taken, running work may end."""
        self.draining = True

    def add_stream(self, cancel: Callable[[], None]) -> int:
        """Remember a running stream; the number is for `remove_stream`."""
        self._next += 1
        self._cancels[self._next] = cancel
        return self._next

    def remove_stream(self, number: int) -> None:
        """Forget a stream that has ended; harmless when it is forgotten already."""
        self._cancels.pop(number, None)

    @property
    def num_streams(self) -> int:
        """Streams that have not ended."""
        return len(self._cancels)

    def cancel_streams(self) -> int:
        """Give up every running stream; how many there were. Each then ends with the reason "cancelled"."""
        cancels = list(self._cancels.values())
        for cancel in cancels:
            cancel()
        return len(cancels)

"""How much each client has had, so that the next turn goes to who had least."""

from __future__ import annotations

from collections import Counter


class Served:
    """Tokens computed for each client.

    A client that comes, or comes back, starts no lower than the least served of those present: being away earns no
    claim. One that leaves and returns keeps what it had above that.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._requests: Counter[str] = Counter()

    def __getitem__(self, client: str) -> int:
        return self._tokens[client]

    def charge(self, client: str, tokens: int) -> None:
        """`tokens` were computed for a client that is present."""
        self._tokens[client] += tokens

    def enter(self, client: str) -> None:
        """The client has one request more."""
        if not self._requests[client]:
            self._tokens[client] = max(self._tokens.get(client, 0), self._least())
        self._requests[client] += 1

    def leave(self, client: str) -> None:
        """The client has one request fewer."""
        self._requests[client] -= 1
        if self._requests[client]:
            return
        del self._requests[client]
        # Of those away, only who had more than everyone present is worth remembering.
        least = self._least()
        self._tokens = {c: n for c, n in self._tokens.items() if c in self._requests or (self._requests and n > least)}

    def _least(self) -> int:
        return min((self._tokens[client] for client, count in self._requests.items() if count), default=0)

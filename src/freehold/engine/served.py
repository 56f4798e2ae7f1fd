"""How much each client has had, so that the next turn goes to who had least."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from freehold.core.clients import Client

_MOST_AWAY = 1000
"""So many of those away are remembered, of each key's users and of the outermost: who had most."""


class Served:
    """Tokens computed for each client, and for whatever it belongs to.

    `served[client]` orders clients: first by what the outermost name had, then by what the next one had. So a key gets
    no more by naming many users, and its users share what it gets.
    A client that comes, or comes back, starts no lower than the least served of those present beside it: being away
    earns no claim. One that leaves and returns keeps what it had above that.
    """

    def __init__(self) -> None:
        self._tokens: dict[Client, int] = {}
        self._requests: Counter[Client] = Counter()

    def __getitem__(self, client: Client) -> tuple[int, ...]:
        return tuple(self._tokens[name] for name in _names(client))

    def charge(self, client: Client, tokens: int) -> None:
        """`tokens` were computed for a client that is present."""
        for name in _names(client):
            self._tokens[name] += tokens

    def enter(self, client: Client) -> None:
        """The client has one request more."""
        for name in _names(client):
            if not self._requests[name]:
                self._tokens[name] = max(self._tokens.get(name, 0), self._least().get(name[:-1], 0))
            self._requests[name] += 1

    def leave(self, client: Client) -> None:
        """The client has one request fewer."""
        gone = False
        for name in _names(client):
            self._requests[name] -= 1
            if not self._requests[name]:
                del self._requests[name]
                gone = True
        if not gone:
            return
        # Of those away, only who had more than the least served of those present beside them is worth remembering.
        least, away = self._least(), defaultdict[Client, list[Client]](list)
        for name, tokens in list(self._tokens.items()):
            if name not in self._requests:
                if tokens > least.get(name[:-1], tokens):
                    away[name[:-1]].append(name)
                else:
                    del self._tokens[name]
        for names in away.values():  # while somebody waits for long, any number may come and go
            for name in sorted(names, key=self._tokens.__getitem__)[:-_MOST_AWAY]:
                del self._tokens[name]

    def _least(self) -> dict[Client, int]:
        """The least that one of those present had, by what they belong to."""
        least: dict[Client, int] = {}
        for name in self._requests:
            least[name[:-1]] = min(self._tokens[name], least.get(name[:-1], self._tokens[name]))
        return least


def _names(client: Client) -> Iterator[Client]:
    return (client[:end] for end in range(1, len(client) + 1))

"""Whom a request is for."""

from __future__ import annotations

Client = tuple[str, ...]
"""Names from the outermost to the innermost: a key, or a host without one, and its user; () for nobody in particular.
Time is shared between the outermost first, then between those inside of each."""


def client_of(name: str | Client) -> Client:
    """A client, given as its only name or as all of them.

    It ends with an empty name: so none is the beginning of another, which would be served before all inside of it.
    """
    return (name, "") if isinstance(name, str) else (*name, "")

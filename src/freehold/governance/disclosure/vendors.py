"""Whose words count as a vendor's own: the addresses at which each vendor is known to publish.

Sites that look like a vendor's exist. What is read there is a third party's statement, whatever it says of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from urllib.parse import urlsplit

from freehold.governance.disclosure.catalogue import read_data


@cache
def shipped_vendors() -> Mapping[str, tuple[str, ...]]:
    """Vendor -> addresses, each a domain (with all below it) or a domain and the beginning of a path."""
    return {name: tuple(places) for name, places in read_data("vendors.json").items()}


def is_at(url: str, places: Iterable[str]) -> bool:
    """Whether the page is at one of the places, over https and at the usual port.

    A domain counts with all domains below it; a path counts by whole segments. Addresses with a user part are at
    none, since they can show one host and name another.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc or "\\" in url:
        return False
    segments = [segment for segment in parts.path.split("/") if segment]
    if any(segment in (".", "..") or "%" in segment for segment in segments):
        return False
    for place in places:
        domain, _, path = place.partition("/")
        wanted = [segment for segment in path.split("/") if segment]
        if (host == domain or host.endswith("." + domain)) and segments[: len(wanted)] == wanted:
            return True
    return False

"""The keys of a running server: looked up in the same time whatever is given, read again when the file changes."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from freehold.core.errors import ConfigError
from freehold.server.operation.key_file import STATIC_KEY_NAME, KeyRecord, hash_key, id_of_key, read_keys
from freehold.server.operation.principal import SCOPES, Principal

logger = logging.getLogger("freehold.server")

_CHECK_SECONDS = 1.0
_NO_RECORD = KeyRecord("0" * 16, "none", "0" * 32, "", "2000-01-01")

Fingerprint = tuple[int, int, int] | None


class KeyExpiredError(ConfigError):
    """The right key, too late."""


class Keys:
    """The key file's keys and the one given to the process. Not thread-safe: it lives on the event loop.

    A server that has asked for keys once never stops asking, whatever becomes of the file; a file that cannot be used
    changes nothing until it can.

    path: None: no file. api_key: None: no key of the process. Raises ConfigError for an empty key and as read_keys.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        api_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        if api_key is not None and not api_key.strip():
            raise ConfigError("the API key is empty; give one, or none at all to serve this machine only")
        self._path = path
        self._clock, self._now = clock, now
        self._salt = secrets.token_hex(16)
        self._static_hash = hash_key(self._salt, api_key if api_key is not None else secrets.token_bytes(32))
        self._static = None if api_key is None else Principal("api-key", STATIC_KEY_NAME, frozenset(SCOPES))
        self._records: dict[str, KeyRecord] = {}
        self._fingerprint: Fingerprint = None
        self._checked_at = clock()
        self._asks = self._static is not None
        if path is not None:
            self._fingerprint = _fingerprint(path)
            self._take(read_keys(path))

    @property
    def asks(self) -> bool:
        """Whether requests need a key."""
        self._look()
        return self._asks

    @property
    def num_usable(self) -> int:
        """Keys that open anything now."""
        now = self._now()
        usable = sum(record.state(now) == "active" for record in self._records.values())
        return usable + (self._static is not None)

    def find(self, given: str) -> Principal | None:
        """Whose key `given` is; None for a wrong or revoked one. Raises KeyExpiredError for an expired one.

        Two hashes are made and compared in constant time, whatever is given.
        """
        self._look()
        key_id = id_of_key(given)
        record = self._records.get(key_id, _NO_RECORD) if key_id is not None else _NO_RECORD
        # Bytes that are no text at all came in as surrogates.
        raw = given.encode("utf-8", "surrogateescape")
        matches = hmac.compare_digest(hash_key(record.salt, raw), record.hash or "-")
        is_static = hmac.compare_digest(hash_key(self._salt, raw), self._static_hash)
        if is_static:
            return self._static
        if not matches:
            return None
        state = record.state(self._now())
        if state == "expired":
            raise KeyExpiredError(f"the API key {record.name!r} expired on {record.expires}; ask for a new one")
        return record.principal() if state == "active" else None

    def reload(self) -> None:
        """Read the file again, whether or not it looks changed."""
        if self._path is None:
            return
        try:
            self._take(read_keys(self._path))
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("keys read from %s: %d usable", self._path, self.num_usable)

    def _look(self) -> None:
        """Read the file again if it has changed; at most once a second, since every request comes by."""
        if self._path is None or self._clock() - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = self._clock()
        found = _fingerprint(self._path)
        if found != self._fingerprint:
            self._fingerprint = found
            self.reload()

    def _take(self, records: tuple[KeyRecord, ...]) -> None:
        self._records = {record.id: record for record in records}
        self._asks = self._asks or bool(records)


def _fingerprint(path: Path) -> Fingerprint:
    try:
        found = os.stat(path)
    except OSError:
        return None
    # The time of change, not of modification: a changed mode counts too.
    return found.st_ino, found.st_ctime_ns, found.st_size

"""Tokens used by key and period, in a small SQLite file: sums outlive a crash of the process."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter
from pathlib import Path

from freehold.core.errors import ConfigError

logger = logging.getLogger("freehold.server")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS used (
    key_id TEXT NOT NULL, period TEXT NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (key_id, period)
) WITHOUT ROWID
"""
_VERSION = 1


class BudgetBook:
    """Adds up tokens. Several servers may share the file. Not thread-safe.

    A sum is in the file when `add` returns: a killed process loses nothing. A machine that loses power may lose the
    last seconds, since waiting for the disk at every answer would hold up all others.

    path: None: sums live and die with this object. Raises ConfigError when the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._unwritten: Counter[tuple[str, str]] = Counter()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, isolation_level=None, timeout=1.0, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise ConfigError(f"the budget file {path} has version {version}; this release reads {_VERSION}")
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"the budget file {path} cannot be used: {error}") from error

    def add(self, key_id: str, period: str, tokens: int) -> None:
        """Add to one sum. What cannot be written, as on a full disk, still counts, and is written with the next."""
        self._unwritten[key_id, period] += tokens
        try:
            for (owner, name), missing in list(self._unwritten.items()):
                self._db.execute(
                    "INSERT INTO used VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens",
                    (owner, name, missing),
                )
                del self._unwritten[owner, name]
        except sqlite3.Error as error:
            logger.error("used tokens cannot be written to the budget file: %s", error)

    def used(self, key_id: str, period: str) -> int:
        """One sum; 0 where nothing was added."""
        row = self._db.execute("SELECT tokens FROM used WHERE key_id = ? AND period = ?", (key_id, period)).fetchone()
        return (0 if row is None else int(row[0])) + self._unwritten[key_id, period]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

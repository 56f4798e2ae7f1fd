"""API keys at rest: one JSON file that its owner can read, and nobody can take a key from.

    {"version": 1, "keys": [{"id": "3f...", "name": "laptop", "salt": "...", "hash": "...", ...}]}

A key is `fh-<id>-<secret>`. The id finds the entry, so that no search is made whose length could tell something;
the secret has 256 random bits. The file holds SHA-256 of salt and key. A slow hash would protect words that people
choose, of which an attacker can try all; of 256 random bits nobody can try any noticeable part, and a slow hash
would let strangers spend the server's time.

The file is replaced as a whole, with mode 0600: readers see the old one or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from freehold.core.durable import sync
from freehold.core.errors import ConfigError
from freehold.server.operation.principal import SCOPES, Allowance, Principal

KEY_PREFIX = "fh-"
FORMAT_VERSION = 1
BUDGET_PERIODS = ("day", "month")
STATIC_KEY_NAME = "api-key"
"""The name of the one key that is given to the process itself, with every scope."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_KEY = re.compile(r"fh-([0-9a-f]{16})-[A-Za-z0-9_-]{43}")
_LOWEST_PRIORITY, _HIGHEST_PRIORITY = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the file has it. Times are ISO 8601 in UTC; expires, revoked: None: never, not.

    Raises ConfigError for what no key can have.
    """

    id: str
    name: str
    salt: str
    hash: str
    created: str
    scopes: tuple[str, ...] = ("inference",)
    expires: str | None = None
    revoked: str | None = None
    priority: int = 0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_tokens: int | None = None
    budget_period: str = "day"

    def __post_init__(self) -> None:
        check_key_name(self.name)
        unknown = sorted(set(self.scopes) - set(SCOPES))
        if unknown or not self.scopes:
            shown = repr(unknown[0]) if unknown else "none"
            raise ConfigError(f"key {self.name}: the scope is {shown}; it must be among {', '.join(SCOPES)}")
        for field in ("requests_per_minute", "tokens_per_minute", "budget_tokens"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"key {self.name}: {field} is {value!r}; it must be a whole number above 0")
        if self.budget_period not in BUDGET_PERIODS:
            periods = " or ".join(BUDGET_PERIODS)
            raise ConfigError(f"key {self.name}: budget_period is {self.budget_period!r}; it must be {periods}")
        if not isinstance(self.priority, int) or not _LOWEST_PRIORITY <= self.priority <= _HIGHEST_PRIORITY:
            raise ConfigError(f"key {self.name}: priority is {self.priority!r}; it must be a 32-bit integer")
        for field in ("created", "expires", "revoked"):
            if getattr(self, field) is not None:
                parse_time(getattr(self, field), f"key {self.name}: {field}")

    @property
    def expiry(self) -> datetime | None:
        """When the key ends by itself."""
        return None if self.expires is None else parse_time(self.expires, "expires")

    def state(self, now: datetime) -> str:
        """ "active", "revoked" or "expired"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expiry is not None and self.expiry <= now else "active"

    def principal(self) -> Principal:
        """The holder of this key."""
        names = [field.name for field in fields(Allowance)]
        allowance = Allowance(**{name: getattr(self, name) for name in names})
        return Principal(self.id, self.name, frozenset(self.scopes), self.priority, allowance)


def check_key_name(name: object) -> None:
    """Raises ConfigError unless `name` can stand in a log line and on a command line as it is."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"the key's name is {name!r}; it must have 1 to 64 letters, digits, '.', '_', '@' or '-', "
            "and begin with a letter or digit"
        )


def parse_time(text: object, what: str) -> datetime:
    """A date or time in ISO 8601; UTC where it names no zone. Raises ConfigError."""
    try:
        # Python 3.10 does not read the "Z" that everyone writes.
        time = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", str(text)))
    except ValueError as error:
        raise ConfigError(f"{what} is {text!r}; it must be a date like 2027-01-31 or a time like "
                          "2027-01-31T12:00:00Z") from error  # fmt: skip
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)


def hash_key(salt: str, key: str | bytes) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(bytes.fromhex(salt) + (key.encode() if isinstance(key, str) else key)).hexdigest()


def id_of_key(key: str) -> str | None:
    """The id in a key of our form; None for other texts."""
    match = _KEY.fullmatch(key)
    return match.group(1) if match else None


def new_key(name: str, *, now: datetime, **fields: Any) -> tuple[KeyRecord, str]:
    """A fresh key: what to keep, and what to give away once. `fields` are KeyRecord's. Raises ConfigError."""
    key_id, salt = secrets.token_hex(8), secrets.token_hex(16)
    key = f"{KEY_PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
    created = now.isoformat(timespec="seconds")
    return KeyRecord(key_id, name, salt, hash_key(salt, key), created, **fields), key


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """The file's keys; none if there is no file.

    Raises ConfigError when it cannot be read, when others may read it, and when anything in it is not understood:
    a limit that is passed over would be no limit.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"other users may use the key file {path} (mode {mode:o}); run: chmod 600 {path}")
    try:
        whole = json.loads(text)
        if not isinstance(whole, dict) or set(whole) != {"version", "keys"}:
            raise ConfigError("it must be an object with 'version' and 'keys'")
        if whole["version"] != FORMAT_VERSION:
            raise ConfigError(f"its version is {whole['version']!r}; this release reads {FORMAT_VERSION}")
        records = tuple(_record(entry) for entry in whole["keys"])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the key file {path} cannot be used: {error}") from error
    if len({record.id for record in records}) < len(records):
        raise ConfigError(f"the key file {path} cannot be used: two keys have the same id")
    return records


def _record(entry: dict[str, Any]) -> KeyRecord:
    for field, digits in (("id", 16), ("salt", 32), ("hash", 64)):
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", str(entry.get(field))):
            raise ConfigError(f"key {entry.get('name')!r}: {field} must be {digits} hexadecimal digits")
    scopes = entry.get("scopes")
    if not isinstance(scopes, list):
        raise ConfigError(f"key {entry.get('name')!r}: scopes must be a list")
    # Unknown names are refused by the dataclass itself.
    return KeyRecord(**{**entry, "scopes": tuple(scopes)})


def add_key(path: Path, name: str, *, now: datetime, **fields: Any) -> str:
    """Make a key, keep its record in the file, return the key itself. Raises ConfigError for a name in use, or that of
    the server's own key: who has one name sees one another's requests."""
    if name == STATIC_KEY_NAME:
        raise ConfigError(f"{name!r} is the name of the key that a server is given itself; give this one another")
    with _locked(path):
        records = read_keys(path)
        if any(record.name == name and record.state(now) == "active" for record in records):
            raise ConfigError(f"there is a key {name!r} already; revoke it first (freehold keys revoke {name})")
        record, key = new_key(name, now=now, **fields)
        _write(path, (*records, record))
    return key


def revoke_key(path: Path, name: str, *, now: datetime) -> int:
    """Mark the keys of that name revoked; how many were active. Raises ConfigError if there is none to revoke."""
    with _locked(path):
        records = read_keys(path)
        mine = [record for record in records if record.name == name and record.revoked is None]
        if not mine:
            known = ", ".join(sorted({r.name for r in records if r.revoked is None})) or "none"
            raise ConfigError(f"there is no key {name!r} to revoke in {path}; there are: {known}")
        revoked = now.isoformat(timespec="seconds")
        _write(path, [replace(record, revoked=revoked) if record in mine else record for record in records])
    return sum(record.state(now) == "active" for record in mine)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. The lock is a file of its own, since the key file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, records: Sequence[KeyRecord]) -> None:
    text = json.dumps({"version": FORMAT_VERSION, "keys": [asdict(record) for record in records]}, indent=2) + "\n"
    # mkstemp's files have mode 0600 from the start.
    descriptor, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync(path.parent)

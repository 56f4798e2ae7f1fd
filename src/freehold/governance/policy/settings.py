"""Which finding means which class: the file classes.toml.

[classes]
base = "proprietary"       # of a request in which nothing is found
payment-card = "regulated"
source-code = "off"        # not looked for

[clients.docs-team]        # the same names, for one client; its key says who it is
base = "public"

[[marker]]
name = "nightjar"
class = "proprietary"
texts = ["Project Nightjar"]
paths = ["src/billing/**"]
repositories = ["github.com/acme/core-*"]

[limits]
seconds = 10.0             # for all detectors together; later the class is "unknown"
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freehold.core.errors import ConfigError
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.markers import Marker
from freehold.governance.policy.toml_text import parse_toml

OFF = "off"
BASE = "base"

DEFAULT_CLASSES: Mapping[str, DataClass | None] = {
    BASE: DataClass.PROPRIETARY,
    "system-prompt": DataClass.PROPRIETARY,
    "image": DataClass.UNKNOWN,
    "file": DataClass.UNKNOWN,
    "tokens": DataClass.UNKNOWN,
    "reference": DataClass.UNKNOWN,
    "sealed": DataClass.UNKNOWN,
    "hosted-tool": DataClass.UNKNOWN,
    "stored": DataClass.UNKNOWN,
    "unknown-field": DataClass.UNKNOWN,
    "payment-card": DataClass.REGULATED,
    "iban": DataClass.REGULATED,
    "national-id": DataClass.REGULATED,
    "private-key": DataClass.SECRET,
    "access-token": DataClass.SECRET,
    "url-password": DataClass.SECRET,
    "email": None,
    "phone": None,
    "source-code": DataClass.PROPRIETARY,
    "betterleaks": None,
}
"""What each name means where the file says nothing; None: off."""


@dataclass(frozen=True, slots=True)
class ClassSettings:
    """The file's content, checked.

    classes: of every name in DEFAULT_CLASSES. clients: for some clients, what differs. seconds: for all detectors.
    digest: SHA-256 of the text it was read from.
    """

    classes: Mapping[str, DataClass | None] = field(default_factory=lambda: dict(DEFAULT_CLASSES))
    clients: Mapping[str, Mapping[str, DataClass | None]] = field(default_factory=dict)
    markers: tuple[Marker, ...] = ()
    seconds: float = 10.0
    digest: str = hashlib.sha256(b"").hexdigest()

    def of(self, client: str) -> Mapping[str, DataClass | None]:
        """The classes that hold for one client."""
        own = self.clients.get(client)
        return {**self.classes, **own} if own else self.classes

    def uses(self, name: str) -> bool:
        """Whether any client's requests are looked through for it."""
        return any(table.get(name) is not None for table in (self.classes, *self.clients.values()))


def read_settings(text: str, where: str = "classes.toml") -> ClassSettings:
    """Settings from TOML. Raises ConfigError, which begins with `where`, for whatever is not understood."""
    try:
        table = parse_toml(text)
        _known(table, ("classes", "clients", "marker", "limits"), "the file")
        classes = {**DEFAULT_CLASSES, **_classes(table.get("classes", {}), "[classes]")}
        clients = {
            name: _classes(own, f"[clients.{name}]")
            for name, own in _table(table.get("clients", {}), "clients").items()
        }
        markers = tuple(_marker(entry) for entry in _list(table.get("marker", []), "marker"))
        if len({marker.name for marker in markers}) < len(markers):
            raise ConfigError("two markers have the same name")
        seconds = _seconds(_table(table.get("limits", {}), "limits"))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ClassSettings(classes, clients, markers, seconds, digest)


def _classes(table: Any, where: str) -> dict[str, DataClass | None]:
    _known(_table(table, where), DEFAULT_CLASSES, where)
    if table.get(BASE) == OFF:
        raise ConfigError(f"{where}: base is 'off'; a request in which nothing is found has a class too")
    return {name: None if word == OFF else DataClass.of(word, f"{where}: {name}") for name, word in table.items()}


def _marker(entry: Any) -> Marker:
    _known(_table(entry, "a marker"), ("name", "class", "texts", "paths", "repositories"), "a marker")
    name = entry.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"a marker's name is {name!r}; it must be a word")
    lists = {
        key: tuple(_words(entry.get(key, []), f"marker {name}: {key}")) for key in ("texts", "paths", "repositories")
    }
    return Marker(name, DataClass.of(entry.get("class"), f"marker {name}: class"), **lists)


def _seconds(table: Mapping[str, Any]) -> float:
    _known(table, ("seconds",), "[limits]")
    seconds = table.get("seconds", ClassSettings.__dataclass_fields__["seconds"].default)
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise ConfigError(f"[limits]: seconds is {seconds!r}; it must be a number above 0")
    return float(seconds)


def _known(table: Any, names: Any, where: str) -> None:
    for name in _table(table, where):
        if name not in names:
            raise ConfigError(f"{where} has {name!r}, which nobody reads; known are {', '.join(names)}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}; it must be a table")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} is {value!r}; it must be a list")
    return value


def _words(value: Any, where: str) -> list[str]:
    if not all(isinstance(word, str) and word for word in _list(value, where)):
        raise ConfigError(f"{where} is {value!r}; it must be a list of texts")
    return list(value)

"""Where requests may go: the file endpoints.toml. The order of its entries is the order in which they are tried.

[[endpoint]]
name = "fleet"
base_url = "http://10.0.0.5:8000"
api = ["openai", "anthropic"]
models = { "minimax-m3" = "MiniMaxAI/MiniMax-M3" }   # or a list, where the names are the same
path = "self-hosted"

[[endpoint]]
name = "minimax"
base_url = "https://api.minimax.io/v1"
api = "openai"
models = ["minimax-m3"]
key_env = "MINIMAX_API_KEY"                          # or key_file; never the key itself
disclosure = "minimax-m3/api"                        # shipped, or a file beside this one
facts = { retention_days = 0 }                       # what an operator knows where the disclosure does not
own_host = "llm.example.com"                         # of a self-hosted one whose host has a public name or address
state = "withdrawn"                                  # with a reason and a date
reason = "export directive"
since = 2026-06-12
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from freehold.core.errors import ConfigError
from freehold.core.text_file import read_utf8
from freehold.governance.policy.cases import resource_of
from freehold.governance.policy.facts import AVAILABLE, SELF_HOSTED, STATES
from freehold.governance.policy.rules import Resource
from freehold.governance.policy.toml_text import parse_toml
from freehold.server.gateway.apis import FAMILIES, Api

_MEMBERS = (
    "name", "base_url", "api", "models", "path", "disclosure", "facts", "key_env", "key_file", "state", "reason",
    "since", "ca_file", "own_host", "connect_seconds", "answer_seconds",
)  # fmt: skip
_INLINE_KEYS = ("key", "api_key", "token", "secret", "password", "authorization", "headers")
# Names that are set aside for private networks, or that no registry of the public net has.
_PRIVATE_ENDINGS = (".internal", ".local", ".localhost", ".lan", ".intranet", ".home.arpa", ".test")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What a resolver takes for an address, though nobody would read it as one.
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*\.?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry. models: name here -> name there. key: None: none is sent.

    connect_seconds: longest time for a connection. answer_seconds: longest silence of the endpoint.
    resources: family of API -> the endpoint as a policy sees it.
    """

    name: str
    base_url: str
    families: tuple[str, ...]
    models: Mapping[str, str]
    resources: Mapping[str, Resource]
    key: str | None = field(default=None, repr=False)
    state: str = AVAILABLE
    reason: str = ""
    since: date | None = None
    ca_file: Path | None = None
    connect_seconds: float = 5.0
    answer_seconds: float = 600.0

    def url(self, api: Api) -> str:
        """Where a request goes. An address that ends with a version, like /v1, is taken to have it."""
        versioned = self.base_url if re.search(r"/v\d+[a-z0-9]*$", self.base_url) else f"{self.base_url}/v1"
        return versioned + api.suffix

    @property
    def state_in_words(self) -> str:
        """For people: "withdrawn since 2026-06-12 (export directive)"."""
        return self.state if self.since is None else f"{self.state} since {self.since.isoformat()} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All of them, in order."""

    entries: tuple[Endpoint, ...]

    def candidates(self, model: str, family: str) -> list[Endpoint]:
        """Those that serve a model over a family of API, available or not, in order."""
        return [entry for entry in self.entries if model in entry.models and family in entry.families]

    def named(self, name: str) -> Endpoint:
        """The one of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def families_of(self, model: str) -> list[str]:
        """Over which families a model is served at all."""
        return [family for family in FAMILIES if self.candidates(model, family)]

    @property
    def models(self) -> list[tuple[str, Endpoint]]:
        """Names that somebody available serves, each with the first who does."""
        found: dict[str, Endpoint] = {}
        for entry in self.entries:
            if entry.state == AVAILABLE:
                for model in entry.models:
                    found.setdefault(model, entry)
        return list(found.items())


def read_endpoints(path: Path, environ: Mapping[str, str] | None, on: date) -> Endpoints:
    """The file's endpoints. environ: where keys are looked up; None: nobody needs them.
    on: the day, for disclosures that expire.

    Raises ConfigError for whatever is not understood, for keys that stand in the file itself or are missing, and for an
    address that contradicts the path.
    """
    try:
        table = parse_toml(read_utf8(path))
        if set(table) != {"endpoint"} or not isinstance(table["endpoint"], list):
            raise ConfigError("needs entries [[endpoint]], and nothing beside them")
        entries = tuple(_endpoint(entry, path.parent, environ, on) for entry in table["endpoint"])
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two endpoints are named {name!r}")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # ConfigError and ArgumentError
        raise ConfigError(f"{path}: {error}") from error
    return Endpoints(entries)


def _endpoint(entry: Any, folder: Path, environ: Mapping[str, str] | None, on: date) -> Endpoint:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"an endpoint's name is {name!r}; it must have letters, digits, '.', '_' or '-'")
    where = f"endpoint {name}"
    for member in entry:
        if member in _INLINE_KEYS:
            raise ConfigError(f"{where}: has {member!r}; keys do not stand in this file: use key_env or key_file")
        if member not in _MEMBERS:
            raise ConfigError(f"{where}: has {member!r}, which nobody reads; known are {', '.join(_MEMBERS)}")
    families = _families(entry.get("api"), where)
    state, reason, since = _state(entry, where)
    resources = {family: _resource(name, family, state, entry, folder, on) for family in families}
    facts = resources[families[0]].facts
    return Endpoint(
        name=name,
        base_url=_address(entry.get("base_url"), facts.path, entry.get("own_host"), where),
        families=families,
        models=_models(entry.get("models"), where),
        resources=resources,
        key=None if environ is None or state != AVAILABLE else _key(entry, folder, environ, where),
        state=state,
        reason=reason,
        since=since,
        ca_file=_file(entry.get("ca_file"), folder, f"{where}: ca_file"),
        connect_seconds=_seconds(entry.get("connect_seconds", 5.0), f"{where}: connect_seconds"),
        answer_seconds=_seconds(entry.get("answer_seconds", 600.0), f"{where}: answer_seconds"),
    )


def _resource(name: str, family: str, state: str, entry: Mapping[str, Any], folder: Path, on: date) -> Resource:
    facts = entry.get("facts", {})
    if not isinstance(facts, dict) or set(facts) & {"path", "disclosure", "api", "state", "source"}:
        raise ConfigError(f"endpoint {name}: facts is {facts!r}; it must be a table of what only an operator can know")
    table: dict[str, Any] = {**facts, "api": family, "state": state}
    if "path" in entry:
        table["path"] = entry["path"]
    if "disclosure" in entry:
        beside = folder / str(entry["disclosure"])
        table["disclosure"] = beside if beside.is_file() else entry["disclosure"]
    return resource_of(name, table, on)


def _families(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in FAMILIES for name in names):
        raise ConfigError(f"{where}: api is {value!r}; it must be 'openai', 'anthropic' or a list of both")
    return tuple(dict.fromkeys(names))


def _models(value: Any, where: str) -> Mapping[str, str]:
    names = (
        {name: name for name in value} if isinstance(value, list) and all(isinstance(n, str) for n in value) else value
    )
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) and name for name in names.values()):
        raise ConfigError(f"{where}: models is {value!r}; a list of names, or a table")
    return names


def _state(entry: Mapping[str, Any], where: str) -> tuple[str, str, date | None]:
    state, reason, since = entry.get("state", AVAILABLE), entry.get("reason", ""), entry.get("since")
    if state not in STATES:
        raise ConfigError(f"{where}: state is {state!r}; it must be one of {', '.join(STATES)}")
    if state == AVAILABLE:
        return state, "", None
    if not isinstance(reason, str) or not reason.strip() or not isinstance(since, date):
        raise ConfigError(f"{where}: is {state}, and needs a reason (a text) and since (a date such as 2026-06-12)")
    return state, reason, since


def _address(value: Any, path: str, own_host: Any, where: str) -> str:
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where}: base_url is {value!r}; it must be an address like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"{where}: base_url may have no user, password, query or fragment")
    host = parts.hostname
    if own_host is not None and (own_host != host or path != SELF_HOSTED):
        raise ConfigError(
            f"{where}: own_host is {own_host!r}; it says that the host of base_url, {host!r}, is own hardware"
        )
    local = _ip(host)
    if local is None and not _HOST.fullmatch(host):
        raise ConfigError(f"{where}: the host {host!r} is no name of letters, digits, '-' and '.', and no address")
    if local is None and _NUMERIC.fullmatch(host):
        raise ConfigError(f"{where}: the host {host!r} is a number; write it as an address such as 10.0.0.5")
    if path == SELF_HOSTED and own_host is None and not _is_private(host, local):
        raise ConfigError(
            f"{where}: is said to be self-hosted, and {host} is a public address or name; if it is your own hardware, "
            f'say own_host = "{host}"'
        )
    loopback = host == "localhost" or (local is not None and local.is_loopback)
    if parts.scheme == "http" and path != SELF_HOSTED and not loopback:
        raise ConfigError(f"{where}: base_url is {value!r}; what leaves own hardware goes over https")
    return str(value).rstrip("/")


def _is_private(host: str, local: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """Whether nobody outside can have it: an address of a private network, or a name that no registry gives away."""
    if local is not None:
        inner = getattr(local, "ipv4_mapped", None) or getattr(local, "sixtofour", None) or local
        return not (local.is_global or inner.is_global) and not local.is_multicast
    name = host.rstrip(".")
    return "." not in name or name.endswith(_PRIVATE_ENDINGS)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _key(entry: Mapping[str, Any], folder: Path, environ: Mapping[str, str], where: str) -> str | None:
    variable, file = entry.get("key_env"), entry.get("key_file")
    if variable is not None and file is not None:
        raise ConfigError(f"{where}: has both key_env and key_file; give one")
    if variable is not None:
        key = environ.get(variable) if isinstance(variable, str) else None
        source = f"the variable {variable}"
    elif file is not None:
        found = _file(file, folder, f"{where}: key_file")
        assert found is not None
        if found.stat().st_mode & 0o077:
            raise ConfigError(f"{where}: other users may read the key file {found}; run: chmod 600 {found}")
        key, source = read_utf8(found).strip(), f"the file {found}"
    else:
        return None
    if not key or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(f"{where}: {source} holds no key")
    return key


def _file(value: Any, folder: Path, what: str) -> Path | None:
    if value is None:
        return None
    path = folder / str(value)
    if not path.is_file():
        raise ConfigError(f"{what} is {value!r}; there is no such file beside endpoints.toml")
    return path


def _seconds(value: Any, what: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise ConfigError(f"{what} is {value!r}; it must be a number above 0")
    return float(value)


def resources(candidates: Sequence[Endpoint], family: str) -> list[Resource]:
    """The candidates as the policy sees them over one family of API."""
    return [candidate.resources[family] for candidate in candidates]

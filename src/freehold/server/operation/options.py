"""How a server is operated. The command line reads names, defaults and help from here."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from freehold.core.errors import ConfigError

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Settings of a server, checked before anything slow happens; a ConfigError names the wrong one.

    tls_cert: PEM file with the certificate, and those between it and the authority; makes the server speak HTTPS.
    tls_key: PEM file with the certificate's private key, without a passphrase.
    behind_proxy: address or network of a reverse proxy; its X-Forwarded-For and X-Forwarded-Proto are believed.
    root_path: path under which the proxy shows the server, and which it takes off, like /llm.
    cors_origin: web pages of this origin, like https://chat.example, may read answers.
    max_connections: most open connections; beyond it the one that has been idle longest is closed, or the new one
        is refused with 503.
    header_seconds: longest time for a client to send a request's headers, or to agree on TLS.
    body_seconds: longest time for a client to send a request's body.
    idle_seconds: how long a connection is kept open between two requests.
    max_body_bytes: largest request body. The bodies of all requests being read take at most eight times this.
    keepalive_seconds: longest silence in a stream before a comment is sent.
    drain_seconds: how long running answers may go on after SIGTERM or Ctrl-C, before they are cancelled.
    log_format: text for people, or one JSON object a line.
    log_level: least important messages that are written.
    access_log: one line for each request.
    log_miss_text: where a prompt leaves what is kept, that line also has the words on both sides, a few of each.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: tuple[str, ...] = ()
    root_path: str | None = None
    cors_origin: tuple[str, ...] = ()
    max_connections: int = 1000
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 30.0
    max_body_bytes: int = 32 * 2**20
    keepalive_seconds: float = 10.0
    drain_seconds: float = 10.0
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    access_log: bool = True
    log_miss_text: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_seconds") and not (value > 0 and math.isfinite(value)):
                if field.name == "drain_seconds" and value == 0:
                    continue
                raise ConfigError(f"{field.name} is {value}; it must be above 0 and finite")
            if field.name.startswith("max_") and value < 1:
                raise ConfigError(f"{field.name} is {value}; it must be at least 1")
        if self.log_miss_text and not self.access_log:
            raise ConfigError("log_miss_text belongs to the lines of the access log; take off access_log: no")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together; give both, or none")
        if self.root_path is not None and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.root_path):
            raise ConfigError(f"root_path is {self.root_path!r}; it must be like /llm, without a slash at the end")
        for address in self.behind_proxy:
            _check_proxy(address)
        for origin in self.cors_origin:
            _check_origin(origin)


def _check_proxy(address: str) -> None:
    try:
        ipaddress.ip_network(address)
    except ValueError as error:
        raise ConfigError(f"behind_proxy is {address!r}; it must be an address or a network: {error}") from error


def _check_origin(origin: str) -> None:
    if not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", origin):
        raise ConfigError(
            f"cors_origin is {origin!r}; it must be one exact origin as browsers send it, like https://chat.example: "
            "lower case, no path, no '*'"
        )

"""Requests to endpoints. No proxy of the environment is used, no redirect followed, no header of a client's passed on
but those that are named here."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.datastructures import Headers

from freehold import __version__
from freehold.core.errors import ConfigError
from freehold.server.gateway.apis import Api
from freehold.server.gateway.endpoints import Endpoint

PASSED_ON = ("anthropic-version", "anthropic-beta", "openai-beta")
"""Headers of clients that change what an answer looks like. They are looked through like the body."""

_PASSED_BACK = ("content-type", "content-encoding", "content-length", "cache-control", "retry-after", "request-id")
_MOST_ERROR_BYTES = 2**20
_ANTHROPIC_VERSION = "2023-06-01"
# What would tell the client that its own key is wrong, or send it elsewhere.
_ABOUT_OUR_KEY = (401, 403, 407)


@dataclass(frozen=True, slots=True)
class Failure:
    """What the client is told of an endpoint that did not answer. status, code: of HTTP and of OpenAI's errors."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] | None = None


def passed_on(headers: Headers) -> dict[str, str]:
    """Of a client's headers those that reach an endpoint."""
    return {name: value for name in PASSED_ON if (value := headers.get(name)) is not None}


class Upstreams:
    """Connections to endpoints, a pool for each file of authorities. Lives on the event loop.

    What sends is a transport, not a client: it knows no redirects, cookies, proxies or environment that could lead a
    request elsewhere.
    """

    def __init__(self) -> None:
        self._transports: dict[Path | None, httpx.AsyncHTTPTransport] = {}

    async def send(
        self, endpoint: Endpoint, api: Api, body: bytes, given: Mapping[str, str], accept: str
    ) -> httpx.Response:
        """Send and wait for the head of the answer. Raises httpx.HTTPError. The caller closes the response."""
        url = endpoint.url(api)
        if api.family == "anthropic" and "anthropic-beta" in given:
            url += "?beta=true"
        silence, connect = endpoint.answer_seconds, endpoint.connect_seconds
        timeout = {"connect": connect, "pool": connect, "read": silence, "write": silence}
        headers = _headers(endpoint, api, given, accept)
        request = httpx.Request("POST", url, headers=headers, content=body, extensions={"timeout": timeout})
        response = await self._transport(endpoint.ca_file).handle_async_request(request)
        response.request = request
        return response

    async def close(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()

    def _transport(self, ca_file: Path | None) -> httpx.AsyncHTTPTransport:
        if ca_file not in self._transports:
            self._transports[ca_file] = httpx.AsyncHTTPTransport(
                verify=trusted(ca_file),
                trust_env=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=15),
            )
        return self._transports[ca_file]


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Whose certificates are believed: the system's authorities, or those of one file alone. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"ca_file {ca_file} holds no certificates in PEM form") from error


def _headers(endpoint: Endpoint, api: Api, given: Mapping[str, str], accept: str) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "accept": accept,
        # So that what passes can be read along.
        "accept-encoding": "identity",
        "user-agent": f"freehold-gateway/{__version__}",
        **given,
    }
    if api.family == "anthropic":
        headers.setdefault("anthropic-version", _ANTHROPIC_VERSION)
    if endpoint.key is not None:
        name, value = (
            ("x-api-key", endpoint.key) if api.family == "anthropic" else ("authorization", f"Bearer {endpoint.key}")
        )
        headers[name] = value
    return headers


def passed_back(response: httpx.Response) -> dict[str, str]:
    """Of an answer's headers those that reach the client."""
    found = {name: value for name in _PASSED_BACK if (value := response.headers.get(name)) is not None}
    if found.get("content-type", "").startswith("text/event-stream"):
        # Tells proxies of the nginx kind not to hold the stream back.
        found["x-accel-buffering"] = "no"
    return found


def failure_of(error: httpx.HTTPError, name: str) -> Failure:
    """What it means that sending failed."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return Failure(502, "upstream_unreachable", f"the endpoint {name} cannot be reached; nothing was sent to it")
    if isinstance(error, httpx.TimeoutException):
        return Failure(504, "upstream_timeout", f"the endpoint {name} did not answer in time")
    return Failure(502, "upstream_failed", f"the connection to the endpoint {name} broke off")


async def refusal_of(response: httpx.Response, name: str, family: str, key: str | None = None) -> Failure | bytes:
    """What a status that is no success means: a failure to be told, or the endpoint's own words, which have the
    form of the client's API already. key: what it was sent, which is taken out of its words."""
    status = response.status_code
    if 300 <= status < 400:
        return Failure(
            502, "upstream_redirect", f"the endpoint {name} sent the request elsewhere, where it does not go"
        )
    if status in _ABOUT_OUR_KEY:
        return Failure(502, "upstream_key", f"the endpoint {name} refuses this gateway's key ({status})")
    retry = response.headers.get("retry-after")
    headers = {"retry-after": retry} if retry is not None else None
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MOST_ERROR_BYTES:
            break
    if status >= 400 and len(body) <= _MOST_ERROR_BYTES and _has_form(bytes(body), family):
        return _without(bytes(body), key)
    shown = status if status >= 400 else 502
    return Failure(shown, "upstream_error", f"the endpoint {name} answered {status} without a reason", headers)


def _without(body: bytes, key: str | None) -> bytes:
    """A JSON text without a key, however its characters are written."""
    if not key:
        return body
    written = json.dumps(json.loads(body), ensure_ascii=False)
    quoted = json.dumps(key, ensure_ascii=False)[1:-1]
    return written.replace(quoted, "[key]").encode("utf-8", "replace") if quoted in written else body


def _has_form(body: bytes, family: str) -> bool:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or not isinstance(value.get("error"), dict):
        return False
    return family == "openai" or value.get("type") == "error"

"""What is answered when something is refused: each API's own form of error, chosen by the path, and by the client's
headers where two APIs share a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from freehold.core.errors import FreeholdError
from freehold.server.errors import client_error, http_error
from freehold.server.errors import error_response as openai_error

Refuse = Callable[[Scope, int, str, str, Mapping[str, str] | None], Response]
"""(scope, status, message, code, headers) -> the whole answer."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def route_path(scope: Scope) -> str:
    """The path as the routes see it: without the prefix under which a proxy has put the whole server."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path


def speaks_messages(scope: Scope) -> bool:
    """Whether the answer is to have the form of Anthropic's API. Its clients name its version in each request, which
    tells them apart from OpenAI's where both ask for the same path: the list of models."""
    path = route_path(scope)
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return True
    return (path == "/v1/models" or path.startswith("/v1/models/")) and "anthropic-version" in Headers(scope=scope)


def refuse(
    scope: Scope,
    status: int,
    message: str,
    code: str,
    headers: Mapping[str, str] | None = None,
    *,
    param: str | None = None,
) -> Response:
    """The answer in the form that clients of this path know. param: the field that is at fault."""
    if speaks_messages(scope):
        request_id = scope.get("state", {}).get("http_request_id")
        named = {"request-id": request_id} if request_id else {}
        # This form has no place of its own for the field.
        named_message = message if param is None or param in message else f"{param}: {message}"
        body = anthropic_error_body(status, named_message, request_id)
        return JSONResponse(body, status_code=status, headers={**(headers or {}), **named})
    return openai_error(status, message, code=code, param=param, headers=headers)


def refuse_client_error(scope: Scope, error: FreeholdError) -> Response:
    """The answer to one of `errors.CLIENT_ERRORS`."""
    found = client_error(error)
    return refuse(scope, found.status, found.message, found.code, found.headers, param=found.param)


def refuse_http_error(scope: Scope, error: HTTPException) -> Response:
    """The answer to what the framework itself refuses: unknown paths and methods."""
    found = http_error(error, f"{scope['method']} {scope['path'][:80]}")
    return refuse(scope, found.status, found.message, found.code, found.headers)


def anthropic_error_body(status: int, message: str, request_id: str | None) -> dict[str, Any]:
    """The body of an error in Anthropic's form; its `type` follows from the status."""
    kind = _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}

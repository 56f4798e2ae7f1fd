"""Our exceptions as HTTP answers: one table, and OpenAI's form of body. Each path's own form: refusals.py."""

from __future__ import annotations

import http
import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from freehold.core.errors import (
    AllowanceError,
    BusyError,
    CapacityError,
    ContextLengthError,
    FreeholdError,
    ModelNotFoundError,
    RequestError,
    TemplateError,
    TokenizerError,
    UnsupportedFieldError,
)
from freehold.server.openai.wire import ErrorBody, ErrorDetail

if TYPE_CHECKING:
    from freehold.server.generation import Broken

logger = logging.getLogger("freehold.server")

# Most special first: the first class that fits decides.
_STATUS_AND_CODE: tuple[tuple[type[FreeholdError], int, str], ...] = (
    (UnsupportedFieldError, 400, "unsupported_parameter"),
    (ContextLengthError, 400, "context_length_exceeded"),
    (BusyError, 429, "busy"),
    (CapacityError, 400, "capacity_exceeded"),
    (RequestError, 400, "invalid_value"),
    (TemplateError, 400, "chat_template_error"),
    (TokenizerError, 400, "tokenizer_error"),
    (ModelNotFoundError, 404, "model_not_found"),
)

CLIENT_ERRORS: tuple[type[FreeholdError], ...] = tuple(kind for kind, _, _ in _STATUS_AND_CODE)
"""Errors whose message is for the client. All others are answered with `internal_error`."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is to be answered, in whatever form. param: the field that is at fault."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] | None = None


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> ErrorBody:
    """The body for `status`; OpenAI's `type` follows from the status."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def error_response(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An HTTP answer with an error body."""
    return body_response(status, error_body(status, message, code=code, param=param), headers=headers)


def body_response(status: int, body: ErrorBody, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An HTTP answer with `body`."""
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def client_error(error: FreeholdError) -> Refusal:
    """The answer to one of CLIENT_ERRORS."""
    status, code = next((status, code) for kind, status, code in _STATUS_AND_CODE if isinstance(error, kind))
    code = error.code if isinstance(error, AllowanceError) else code
    headers = {"Retry-After": str(math.ceil(error.retry_seconds))} if isinstance(error, BusyError) else None
    param = error.field if isinstance(error, RequestError) else None
    if isinstance(error, ModelNotFoundError):
        param = "model"
    if isinstance(error, TemplateError):
        param = "messages"
    return Refusal(status, str(error), code, param, headers)


def http_error(error: HTTPException, asked: str) -> Refusal:
    """The answer to what the framework itself refuses: unknown paths and methods. `asked` names both."""
    code = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return Refusal(error.status_code, f"{asked}: {error.detail}", code, headers=error.headers)


def internal_error_body(http_request_id: str) -> ErrorBody:
    """What a client may know about a failure of ours: the id under which the log tells more."""
    message = f"internal error; the server's log has details under request id {http_request_id}"
    return error_body(500, message, code="internal_error")


def describe_exception(error: BaseException) -> str:
    """Where `error` and its causes came from, without their messages, which may quote a prompt."""
    seen: BaseException | None = error
    parts = []
    while seen is not None:
        frames = "".join(
            f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(seen.__traceback__)
        )
        parts.append(f"{type(seen).__module__}.{type(seen).__qualname__}{frames}")
        seen = seen.__cause__ or seen.__context__
    return "\ncaused by ".join(parts)


def log_failure(http_request_id: str, detail: str) -> None:
    """Tell the operator why a request failed. `detail` must not quote a prompt."""
    logger.error("request %s failed: %s", http_request_id, detail)


def broken_answer(broken: Broken, http_request_id: str) -> tuple[int, str, str]:
    """Log what happened; status, message and code for the client."""
    if broken.reason == "withdrawn":
        logger.info("request %s was ended by DELETE /v1/requests", http_request_id)
        # A status that client libraries do not take for a reason to send the request again.
        message = "the request was ended by DELETE /v1/requests/{id}; what was read of its prompt is kept"
        return 410, message, "request_cancelled"
    if broken.refusal is not None:
        logger.info("request %s was refused in its answer: %s", http_request_id, broken.detail)
        return 400, broken.refusal, "invalid_value"
    if broken.reason == "cancelled":  # a drain that was asked for, and no fault of anybody's
        logger.warning("request %s was given up: %s", http_request_id, broken.detail)
        message = "the server gave this request up, most likely because it is shutting down; send it again"
        return 503, message, "request_cancelled"
    log_failure(http_request_id, broken.detail)
    if broken.reason == "timeout":
        message = "the request took longer than this server allows; what was read of the prompt is kept: send it again"
        return 504, message, "timeout"
    return 500, internal_error_body(http_request_id).error.message, "internal_error"

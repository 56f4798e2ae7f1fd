"""The wire types of what is told about a server: its health, and the requests that it answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class SealState(BaseModel):
    """How the process is sealed. layers: in effect, with what each is; missing: those that are not, and why.

    open_files: what was open before and leads elsewhere. refused: attempts to get out since then; None: they are not
    recorded. recorder_alive: whether they still are; None: they never were.
    """

    since: str
    layers: dict[str, str]
    missing: dict[str, str]
    open_files: list[str]
    filter_sha256: str | None
    refused: int | None
    recorder_alive: bool | None


class Health(BaseModel):
    """GET /health. model, engine, seal: only for those who may use the API. engine: counters by name.

    seal: left out for a server that is not sealed.
    """

    status: Literal["ok"] = "ok"
    model: str | None = None
    engine: dict[str, float | int | str] | None = None
    seal: SealState | None = None


class Readiness(BaseModel):
    """GET /health/ready. reason: why not."""

    status: Literal["ready", "draining"]
    reason: str | None = None


class RunningChoice(BaseModel):
    """One answer to a request, so far."""

    state: Literal["waiting", "reading", "writing", "ended"]
    prompt_tokens: int
    prompt_tokens_read: int
    generated_tokens: int


class RunningRequest(BaseModel):
    """What may be known of somebody's request: never its text. client: whom it is for."""

    id: str
    object: Literal["request"] = "request"
    route: str
    client: str
    seconds: float
    choices: list[RunningChoice]


class RunningRequests(BaseModel):
    """GET /v1/requests: all that are being answered, the oldest first."""

    object: Literal["list"] = "list"
    data: list[RunningRequest]

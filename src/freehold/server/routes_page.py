"""GET / and /page/{name}: the web page, whose files are read once and checked into memory.

Every file is answered with headers that keep a browser from running or loading anything from elsewhere, and from
making HTML of text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        # Browsers that know it refuse innerHTML and its like altogether.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, but asked for again: a new version counts at once, an old one costs an answer without a body.
    "Cache-Control": "private, no-cache",
}

_INDEX = "index.html"


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file. etag: of its bytes, in quotes as the header has it."""

    body: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Name -> file, of all files of the page."""
    found = {}
    for entry in (files("freehold.server") / "page").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            found[entry.name] = PageFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found


def page_routes() -> APIRouter:
    """The routes of this file. They need a key as all others do; see `AccessGuard`."""
    router = APIRouter()
    kept = page_files()

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(http: Request) -> Response:
        return _answer(http, kept[_INDEX])

    @router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(http: Request, name: str) -> Response:
        # The page itself has one address, since its links are relative to it.
        if name not in kept or name == _INDEX:
            raise HTTPException(404, "the web page has no such file")
        return _answer(http, kept[name])

    return router


def _answer(http: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in _given_etags(http):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def _given_etags(http: Request) -> set[str]:
    """Those that the browser has; weak ones are as good, since bytes that a proxy has packed say the same."""
    given = http.headers.get("if-none-match", "").split(",")
    return {etag.strip().removeprefix("W/") for etag in given}

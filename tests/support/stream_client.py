"""A client of streams small enough to hold two hundred of: plain HTTP/1.1 on a socket of its own, closed when asked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

DONE = "done"
"""How a stream ends that was read to its proper end."""


@dataclass
class Told:
    """What a stream has said so far. end: DONE, the code or words of a failure, or None before the end.

    first_byte, first_text: seconds from the request to the first byte of the answer, and to the first of its text.
    """

    request_id: str = ""
    status: int = 0
    text: str = ""
    finish: str | None = None
    end: str | None = None
    first_byte: float | None = None
    first_text: float | None = None
    events: int = 0
    lines: list[str] = field(default_factory=list)


@asynccontextmanager
async def asked(port: int, method: str, path: str, body: Mapping[str, Any] | None = None) -> AsyncIterator[Exchange]:
    """Sends a request and yields its answer, to be read or not; the connection is closed on the way out."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        writer.write(head.encode() + b"\r\n" + content)
        await writer.drain()
        yield Exchange(reader, began)
    finally:
        writer.transport.abort()  # whatever is still on its way, as when a process ends


class Exchange:
    """An answer on its way."""

    def __init__(self, reader: asyncio.StreamReader, began: float) -> None:
        self._reader, self._began = reader, began
        self.told = Told()

    async def head(self) -> Told:
        """Reads the status and the request's id."""
        told = self.told
        line = await self._reader.readline()
        told.first_byte = time.monotonic() - self._began
        told.status = int(line.split()[1])
        while (line := await self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "x-request-id":
                told.request_id = value.strip()
        return told

    async def events(self) -> AsyncIterator[Told]:
        """Reads the stream; after each event what was told up to it."""
        # A chunk's size stands on a line of its own; it is neither "data:" nor anything else that an event has.
        while line := await self._reader.readline():
            if line.startswith(b"data: "):
                hear(self.told, line[6:].decode().rstrip("\r\n"), time.monotonic() - self._began)
                yield self.told


def hear(told: Told, data: str, seconds: float) -> None:
    """Takes in the data of one event, of whichever API."""
    told.events += 1
    if data == "[DONE]":
        told.end = told.end or DONE
        return
    event = json.loads(data)
    kind = event.get("type", "")
    if "error" in event and not kind.startswith("response."):
        told.end = str(event["error"].get("code") or event["error"]["message"])
    elif kind == "message_stop" or kind in ("response.completed", "response.incomplete"):
        told.finish = told.finish or kind
        told.end = DONE
    elif kind == "response.failed":
        told.end = event["response"]["error"]["message"]
    elif kind == "message_delta":
        told.finish = event["delta"]["stop_reason"]
    text = _text(kind, event)
    if text:
        told.first_text = told.first_text if told.first_text is not None else seconds
        told.text += text


def _text(kind: str, event: Mapping[str, Any]) -> str:
    if kind == "response.output_text.delta":
        return str(event["delta"])
    if kind == "content_block_delta":
        return str(event["delta"].get("text", ""))
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))

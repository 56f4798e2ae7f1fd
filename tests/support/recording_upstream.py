"""An endpoint that remembers all that reaches it, and answers in its API's form, or fails in one of many ways."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

MODES = ("ok", "error", "no_json", "key_refused", "redirect", "hang", "half")


@dataclass(frozen=True)
class Arrival:
    """One request as it came."""

    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class RecordingUpstream:
    """model: as which it answers. mode: one of MODES. elsewhere: where "redirect" sends.
    hang_seconds: before anything is said, in "hang".
    """

    def __init__(
        self, name: str, *, mode: str = "ok", elsewhere: str = "", hang_seconds: float = 2.0, model: str = ""
    ) -> None:
        assert mode in MODES
        self.model = model or f"{name}-model"
        self.name, self.mode, self.elsewhere, self.hang_seconds = name, mode, elsewhere, hang_seconds
        self.arrivals: list[Arrival] = []
        self.given_up = 0
        self._lock = threading.Lock()

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/{rest:path}")
        async def take(request: Request) -> Response:
            body = await request.body()
            with self._lock:
                headers = dict(request.headers)
                self.arrivals.append(Arrival(request.url.path, request.url.query, headers, body))
            return await self._answer(request.url.path, json.loads(body))

        return app

    async def _answer(self, path: str, body: dict[str, Any]) -> Response:
        anthropic = path.startswith("/v1/messages")
        if self.mode == "error":
            error = {"type": "overloaded_error" if anthropic else "server_error", "message": f"{self.name} is full"}
            whole = {"type": "error", "error": error} if anthropic else {"error": error}
            return JSONResponse(whole, 503, headers={"retry-after": "7"})
        if self.mode == "no_json":
            return Response("<html>Bad Gateway</html>", 502, media_type="text/html")
        if self.mode == "key_refused":
            return JSONResponse({"error": {"message": "wrong key", "type": "authentication_error"}}, 401)
        if self.mode == "redirect":
            return RedirectResponse(self.elsewhere + path, 307)
        if self.mode == "hang":
            await asyncio.sleep(self.hang_seconds)
        if path.endswith("/count_tokens"):
            return JSONResponse({"input_tokens": 12})
        events = self.events(path)
        if body.get("stream"):
            return StreamingResponse(self._sent(events), media_type="text/event-stream")
        if self.mode == "half":
            return StreamingResponse(self._sent([b'{"id": "x", '], broken=True), media_type="application/json")
        return JSONResponse(self.whole(path))

    async def _sent(self, events: list[bytes], *, broken: bool = False) -> AsyncIterator[bytes]:
        try:
            for number, event in enumerate(events):
                yield event
                await asyncio.sleep(0.002)
                if self.mode == "half" and (broken or number == len(events) // 2):
                    raise ConnectionError("the endpoint dies in the middle of its answer")
        except asyncio.CancelledError:
            self.given_up += 1
            raise

    def whole(self, path: str) -> dict[str, Any]:
        """An answer, in the API's form."""
        if path.startswith("/v1/messages"):
            return {
                "id": "msg_1", "type": "message", "role": "assistant", "model": self.model,
                "content": [{"type": "text", "text": f"from {self.name}"}], "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5,
                          "output_tokens": 2},
            }  # fmt: skip
        if path == "/v1/responses":
            return {
                "id": "resp_1", "object": "response", "created_at": 1, "model": self.model,
                "status": "completed", "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
                "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 2,
                          "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 11},
            }  # fmt: skip
        usage = {
            "prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 4},
        }  # fmt: skip
        head = {"id": "c_1", "created": 1, "model": self.model, "usage": usage}
        if path == "/v1/completions":
            choice: dict[str, Any] = {
                "index": 0,
                "text": f"from {self.name}",
                "finish_reason": "stop",
                "logprobs": None,
            }
            return {**head, "object": "text_completion", "choices": [choice]}
        message = {"role": "assistant", "content": f"from {self.name}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {**head, "object": "chat.completion", "choices": [choice]}

    def events(self, path: str) -> list[bytes]:
        """The same as events, as this endpoint sends them, byte for byte."""
        if path.startswith("/v1/messages"):
            message = {**self.whole(path), "content": [], "stop_reason": None}
            parts: list[dict[str, Any]] = [
                {"type": "message_start", "message": message},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "from "}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": self.name}},
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                 "usage": {"output_tokens": 7}},
                {"type": "message_stop"},
            ]  # fmt: skip
            return [f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode() for part in parts]
        if path == "/v1/responses":
            whole = self.whole(path)
            made = [{"type": "response.created", "sequence_number": 0, "response": {**whole, "usage": None}},
                    {"type": "response.completed", "sequence_number": 1, "response": whole}]  # fmt: skip
            return [f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode() for part in made]
        head = {"id": "c_1", "created": 1, "model": self.model}
        if path == "/v1/completions":
            text = [
                {"index": 0, "text": word, "finish_reason": None, "logprobs": None} for word in ("from ", self.name)
            ]
            chunks = [{**head, "object": "text_completion", "choices": [choice]} for choice in text]
        else:
            deltas = [{"role": "assistant", "content": "from "}, {"content": self.name}]
            chunks = [
                {**head, "object": "chat.completion.chunk",
                 "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
                for delta in deltas
            ]  # fmt: skip
        last = {**chunks[0], "choices": [], "usage": self.whole(path)["usage"]}
        # A comment, odd spaces and an unusual line end: nothing that the gateway may tidy up.
        odd = [
            b": a comment\n\n",
            *(f"data:   {json.dumps(chunk, indent=None)}\n\n".encode() for chunk in [*chunks, last]),
        ]
        return [*odd, b"data: [DONE]\n\n"]

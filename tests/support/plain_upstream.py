"""An endpoint in a process of its own that answers at once: `python -m support.plain_upstream` prints its address."""

from __future__ import annotations

import json
from typing import Any

from freehold.server.run import Server, reserve_port, server_config, server_url

ANSWER = json.dumps(
    {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
     "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}
).encode()  # fmt: skip


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body and answers."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


if __name__ == "__main__":
    listener = reserve_port("127.0.0.1", 0)
    config = server_config(app, log_level="critical")  # type: ignore[arg-type]
    Server(config, lambda: print(server_url(listener), flush=True)).run(sockets=[listener])

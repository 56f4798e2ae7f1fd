"""An application on a socket, in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal

from fastapi import FastAPI

from freehold.server.run import Server, reserve_port, server_config, server_url


@contextlib.contextmanager
def served(app: FastAPI, *, log_level: str = "critical", lifespan: Literal["on", "off"] = "on") -> Iterator[str]:
    """Its address, as long as it is open."""
    listener = reserve_port("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(server_config(app, log_level=log_level, drain_seconds=1, lifespan=lifespan), ready.set)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # they belong to the main thread
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(10), "the server did not start"
        yield server_url(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
        listener.close()

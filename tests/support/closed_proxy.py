"""A proxy that lets nothing through and notes who was wanted, for programs that must reach nothing but loopback."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def closed_proxy() -> Iterator[tuple[dict[str, str], list[str]]]:
    """Environment variables that send a program's traffic here, and the hosts that it wanted so far."""
    wanted: list[str] = []

    class Door(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self) -> None:
            words = self.rfile.readline(8192).decode("latin-1").split()
            wanted.append(words[1] if len(words) > 1 else "?")
            self.wfile.write(_REFUSAL)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Door)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = {name: url for upper in names for name in (upper, upper.lower())}
    try:
        yield {**proxies, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}, wanted
    finally:
        server.shutdown()
        server.server_close()

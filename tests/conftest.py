"""What every test gets: no network but loopback, few threads, and the default model on request."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Set before anything reads them: nothing below may import torch, transformers or tokenizers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Workers side by side share the cores: a thread of one that waits for a core holds up the others of its team.
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, min(2, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))),
)

import pytest

LOOPBACK = ("127.", "::1", "localhost")


class Network:
    """Connections of this process: to the loopback interface only, unless inside `opened()`."""

    def __init__(self) -> None:
        self._open = False

    def check(self, sock: socket.socket, address: Any) -> None:
        """Refuse an address beyond loopback, naming it."""
        internet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if internet and not self._open and not str(address[0]).startswith(LOOPBACK):
            raise ConnectionRefusedError(f"a test tried to reach {address[0]}; only loopback is open to tests")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let connections through while a fixture fetches something."""
        self._open = True
        try:
            yield
        finally:
            self._open = False


@pytest.fixture(scope="session", autouse=True)
def network() -> Iterator[Network]:
    """Close the network for the whole session."""
    closed = Network()
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def checked_connect(sock: socket.socket, address: Any) -> None:
        closed.check(sock, address)
        connect(sock, address)

    def checked_connect_ex(sock: socket.socket, address: Any) -> int:
        closed.check(sock, address)
        return connect_ex(sock, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
        yield closed


@pytest.fixture(scope="session")
def default_model(network: Network) -> Path:
    """The default model's file, in the user's own FREEHOLD_HOME; fetched if it was never pulled."""
    from freehold.loading.pull import DEFAULT_MODEL, pull

    with network.opened():
        return pull(DEFAULT_MODEL)  # costs nothing if it is here

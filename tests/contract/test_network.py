"""Tests run with the network closed: only the loopback interface answers."""

from __future__ import annotations

import os
import socket

import pytest


def test_other_machines_are_out_of_reach() -> None:
    with (
        socket.socket() as client,
        pytest.raises(ConnectionRefusedError, match=r"tried to reach 192\.0\.2\.1"),
    ):
        client.connect(("192.0.2.1", 80))


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_hub_is_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"

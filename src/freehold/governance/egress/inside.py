"""One process that tries every route, sealed by the layers it is told, or by none.

    python -m freehold.governance.egress.inside

A line of JSON on stdin says who it is, what seals it and what it may send where; a line on stdout tells how each
attempt ended for itself. Whether something arrived, only the other side knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.egress.namespaces import packets
from freehold.governance.egress.outside import become
from freehold.governance.egress.routes import ROUTES, Inside, NotHereError, Outside
from freehold.governance.egress.seal import seal

_SECONDS_EACH = 6
CONNECTED = "connected"
_LISTENERS = ("unspecified", "shut", "accepting", "groups", "source groups")


def main() -> None:
    """See the module."""
    asked = json.loads(sys.stdin.readline())
    inside = _prepared(asked)
    told: dict[str, Any] = {"routes": {}}
    told["routes"][CONNECTED] = _tried(lambda: _inherited(inside, asked))
    if asked["layers"] is None:
        told["seal"] = None
    else:
        record = None if asked["record"] is None else Path(asked["record"])
        try:
            stands = seal(list(inside.listeners.values()), record=record, layers=asked["layers"], mounts=None)
        except GovernanceError as error:
            print(json.dumps({"refused": str(error)}), flush=True)
            return
        told["seal"] = {"layers": stands.layers, "open_files": stands.open_files}
    for slot, route in enumerate(ROUTES):
        inside.slot = asked["first_slot"] + slot % 3
        token = asked["tokens"][route.name].encode()
        told["routes"][route.name] = _tried(lambda route=route, token=token: route.send(inside, token))
    told["packets"] = packets()
    print(json.dumps(told), flush=True)


def _prepared(asked: dict[str, Any]) -> Inside:
    """What this process has before it is sealed, and who it is from then on."""
    terminal = None
    if asked["terminal"] is not None:
        os.setsid()
        terminal = os.open(asked["terminal"], os.O_RDWR)  # without a terminal, one that is opened becomes its own
    become(asked["user"])
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in _LISTENERS}
    with contextlib.suppress(OSError):  # a machine without IPv6
        listeners["groups 6"] = socket.create_server(("::1", 0), family=socket.AF_INET6)
    _client(listeners)
    outside = Outside(**asked["outside"])
    return Inside(outside, listeners, terminal)


def _client(listeners: Mapping[str, socket.socket]) -> None:
    """Another process that connects and waits, so that there is a connection to accept.

    It is cut loose, since a process with children is not sealed, and ends with the other side's listeners.
    """
    child = os.fork()
    if child != 0:
        os.waitpid(child, 0)
        return
    if os.fork() == 0:
        address = listeners["accepting"].getsockname()
        for listener in listeners.values():
            listener.close()
        for standard in (0, 1):
            os.close(standard)
        with contextlib.suppress(OSError):
            connected = socket.create_connection(address)
            connected.recv(1)
    os._exit(0)


def _inherited(inside: Inside, asked: dict[str, Any]) -> None:
    """A connection that was open before: a process that has one must not be sealed at all."""
    with socket.create_connection(("127.0.0.1", inside.outside.tcp4)) as out:
        if asked["layers"] is not None:
            seal(list(inside.listeners.values()), layers=[], mounts=None)
        out.sendall(asked["tokens"][CONNECTED].encode() + b";")


def _tried(attempt: Any) -> dict[str, Any]:
    """Try in a child, so that nothing of it stays. Returns its process number and how it ended."""
    near, far = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(_SECONDS_EACH)
        try:
            os.write(far, json.dumps(_ending(attempt)).encode())
            os._exit(0)
        except BaseException:  # a fault of the attempt's own must not pass for a refusal
            traceback.print_exc()
        os._exit(1)
    os.close(far)
    with os.fdopen(near) as told:
        text = told.read()
    _, status = os.waitpid(pid, 0)
    if not text and os.WIFEXITED(status):
        raise RuntimeError("an attempt ended in an error of its own, see above")
    if not text:
        return {"pid": pid, "error": f"killed by {signal.Signals(os.WTERMSIG(status)).name}", "absent": False}
    return {"pid": pid, **json.loads(text)}


def _ending(attempt: Any) -> dict[str, Any]:
    try:
        attempt()
    except NotHereError as error:
        return {"error": error.strerror, "absent": True}
    except (OSError, GovernanceError, ValueError) as error:
        reason = getattr(error, "reason", error)  # of urllib
        return {"error": getattr(reason, "strerror", None) or str(reason), "absent": False}
    return {"error": None, "absent": False}


if __name__ == "__main__":
    main()

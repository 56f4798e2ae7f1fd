"""The other side of the matrix: it listens wherever a token could arrive, and remembers what really came.

    python -m freehold.governance.egress.outside

A line of JSON on stdin says where and for whom; a line on stdout tells the addresses; when stdin ends, a last line on
stdout holds all that was received. It is never sealed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import resource
import selectors
import signal
import socket
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freehold.governance.egress.routes import (
    ETHERTYPE,
    LIMIT_BASE,
    NETLINK_USERSOCK,
    SLOT_BYTES,
    VSOCK_PORT,
)
from freehold.governance.egress.routes_multicast import joined_tokens
from freehold.governance.egress.syscalls import prctl

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_TCP_FASTOPEN = 23
NUM_SLOTS = 64
_GROUPS_EVERY = 0.05


class Listening:
    """All the places at once, in one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready = selectors.DefaultSelector()
        self._received = bytearray()
        self._groups = b""
        self.absent: dict[str, str] = {}

    def streams(self, made: Callable[[], socket.socket]) -> socket.socket:
        """A listener whose clients are read to their end; `GET` is answered."""
        listener = made()
        listener.listen(64)
        self._ready.register(listener, selectors.EVENT_READ, self._accept)
        return listener

    def datagrams(self, made: Callable[[], socket.socket]) -> socket.socket:
        """A socket whose messages are remembered."""
        found = made()
        self._ready.register(found, selectors.EVENT_READ, self._read_datagram)
        return found

    def descriptor(self, number: int) -> None:
        """Something to be read, such as a terminal."""
        self._ready.register(number, selectors.EVENT_READ, self._read_descriptor)

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives; None, with the reason kept, where the machine cannot."""
        try:
            return make()
        except OSError as error:
            self.absent[name] = error.strerror or str(error)
            return None

    def serve(self, until: int) -> str:
        """Receive until that descriptor is at its end, and then until nothing more is waiting. Returns all of it."""
        self._ready.register(until, selectors.EVENT_READ, None)
        ended = False
        while True:
            events = self._ready.select(0.3 if ended else _GROUPS_EVERY)
            self._read_groups()
            if ended and not events:
                break
            for key, _ in events:
                if key.data is None:
                    if not os.read(until, 4096):
                        ended = True
                        self._ready.unregister(until)
                else:
                    key.data(key.fileobj)
        for path in self._directory.iterdir():
            self._received += path.read_bytes() + " ".join(os.listxattr(path)).encode()
        return self._received.decode("latin-1")

    def _read_groups(self) -> None:
        found = joined_tokens()
        if found != self._groups:
            self._groups = found
            self._received += found + b" "

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self._ready.register(client, selectors.EVENT_READ, self._read_stream)

    def _read_stream(self, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
        except OSError:
            data = b""
        self._received += data
        if data.startswith(b"GET "):
            client.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")
        if not data or data.startswith(b"GET "):
            self._ready.unregister(client)
            client.close()

    def _read_datagram(self, found: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, sender = found.recvfrom(65536)
            self._received += data
            if b"\x07invalid\0" in data:  # a question of DNS: there is no such name
                found.sendto(data[:2] + b"\x81\x83" + data[4:], sender)

    def _read_descriptor(self, number: int) -> None:
        try:
            self._received += os.read(number, 65536)
        except OSError:  # a terminal that was hung up
            self._ready.unregister(number)


def _bound(family: int, kind: int, protocol: int, address: Any, *, fast: bool = False) -> socket.socket:
    found = socket.socket(family, kind, protocol)
    if fast:
        found.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN, 16)
    found.bind(address)
    return found


def _unix(kind: int, address: str) -> socket.socket:
    found = _bound(socket.AF_UNIX, kind, 0, address)
    if not address.startswith("\0"):
        os.chmod(address, 0o777)
    return found


def _listen(places: Listening, base: Path) -> dict[str, Any]:
    """Open every place; returns the members of `Outside` but for the victim's."""
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    tcp4 = places.streams(lambda: _bound(socket.AF_INET, stream, 0, ("127.0.0.1", 0), fast=True))
    udp4 = places.datagrams(lambda: _bound(socket.AF_INET, datagram, 0, ("127.0.0.1", 0)))
    tcp6 = places.attempt(
        "tcp6", lambda: places.streams(lambda: _bound(socket.AF_INET6, stream, 0, ("::1", 0), fast=True))
    )
    udp6 = places.attempt("udp6", lambda: places.datagrams(lambda: _bound(socket.AF_INET6, datagram, 0, ("::1", 0))))
    raw = places.attempt(
        "raw", lambda: places.datagrams(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    )
    packet = places.attempt("packet", lambda: places.datagrams(_packets))
    vsock = places.attempt("vsock", lambda: places.streams(lambda: _bound(socket.AF_VSOCK, stream, 0, (1, VSOCK_PORT))))
    netlink = places.attempt(
        "netlink",
        lambda: places.datagrams(lambda: _bound(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK, (0, 0))),
    )
    (base / "files" / "file").touch()
    (base / "files" / "file").chmod(0o666)
    abstract = f"freehold-{os.getpid()}"
    places.streams(lambda: _unix(stream, str(base / "stream")))
    places.streams(lambda: _unix(stream, "\0" + abstract))
    places.datagrams(lambda: _unix(datagram, str(base / "datagram")))
    return {
        "pid": os.getpid(),
        "tcp4": tcp4.getsockname()[1],
        "tcp6": tcp6 and tcp6.getsockname()[1],
        "udp4": udp4.getsockname()[1],
        "udp6": udp6 and udp6.getsockname()[1],
        "unix_stream": str(base / "stream"),
        "unix_datagram": str(base / "datagram"),
        "abstract": abstract,
        "directory": str(base / "files"),
        "file": str(base / "files" / "file"),
        "raw": raw is not None,
        "packet": packet is not None,
        "vsock": vsock is not None,
        "netlink": netlink and netlink.getsockname()[0],
    }


def _packets() -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    found.bind(("lo", ETHERTYPE))
    return found


def _victim(user: int, port: int) -> dict[str, int]:
    """Another process of that user, which has a connection and sends whatever appears in its memory or limits."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _be_victim(user, port, theirs)
        except BaseException as error:  # it must not go on as the process that it was forked from
            os.write(2, f"the victim ended: {error!r}\n".encode())
        os._exit(1)
    os.close(theirs)
    with os.fdopen(ours) as told:
        address, number = (int(word) for word in told.readline().split())
    return {"victim_pid": pid, "victim_address": address, "victim_socket": number}


def _be_victim(user: int, port: int, told: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    become(user)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # becoming another user has cleared it
    memory = ctypes.create_string_buffer(NUM_SLOTS * SLOT_BYTES)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with socket.create_connection(("127.0.0.1", port)) as out:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.write(told, f"{ctypes.addressof(memory)} {out.fileno()}\n".encode())
        os.close(told)
        while True:
            sent = signal.sigtimedwait({signal.SIGUSR1}, 0.02)
            if sent is not None:
                out.sendall(f"pid{sent.si_pid};".encode())
            soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            if soft != limit[0]:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                out.sendall(f"pid{soft - LIMIT_BASE};".encode())
            found = memory.raw.replace(b"\0", b"")
            if found:
                ctypes.memset(memory, 0, len(memory))
                out.sendall(found)


def become(user: int) -> None:
    """Be that user, for good, and be seen by its other processes as one of them."""
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(_PR_SET_DUMPABLE, 1)


def _queue(places: Listening) -> int:
    """A message queue that everybody may write to; a child passes on what comes."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = int(libc.msgget(0, 0o1622))
    if queue < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    near, far = os.pipe()
    if os.fork() == 0:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        message = ctypes.create_string_buffer(256)
        while (length := libc.msgrcv(queue, message, 248, 0, 0)) > 0:
            os.write(far, message.raw[8 : 8 + length])
        os._exit(0)
    os.close(far)
    places.descriptor(near)
    return queue


def _terminals(places: Listening, count: int) -> list[str]:
    """Terminals as a shell has them: what is typed there is read here."""
    names = []
    for _ in range(count):
        _, reads = pty.openpty()
        settings = termios.tcgetattr(reads)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(reads, termios.TCSANOW, settings)
        places.descriptor(reads)
        names.append(os.ttyname(reads))
    return names


def main() -> None:
    """See the module. stdin: {"base": a directory, "users": user ids, "terminals": how many}."""
    asked = json.loads(sys.stdin.readline())
    base = Path(asked["base"])
    places = Listening(base / "files")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    common = _listen(places, base)
    common["queue"] = places.attempt("queue", lambda: _queue(places))
    common["absent"] = places.absent
    victims = {str(user): _victim(user, common["tcp4"]) for user in asked["users"]}
    terminals = places.attempt("terminal", lambda: _terminals(places, asked["terminals"])) or []
    print(json.dumps({"common": common, "victims": victims, "terminals": terminals}), flush=True)
    received = places.serve(sys.stdin.fileno())
    for victim in victims.values():
        os.kill(victim["victim_pid"], signal.SIGKILL)
    if common["queue"] is not None:
        ctypes.CDLL(None).msgctl(common["queue"], 0, None)  # IPC_RMID
    print(json.dumps({"received": received}), flush=True)


if __name__ == "__main__":
    main()

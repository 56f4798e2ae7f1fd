"""An empty network namespace, a private IPC namespace, and no capabilities: for root and for ordinary users."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

from freehold.governance.egress.syscalls import prctl, syscall

_NEWIPC = 0x08000000
_NEWUSER = 0x10000000
_NEWNET = 0x40000000

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
# NOROOT and NO_SETUID_FIXUP, each with its lock: being user 0 gives no capability, now or later.
_SECURE_BITS = 0b1111
_CAPABILITY_VERSION = 0x20080522
_SETPCAP, _SYS_ADMIN = 8, 21


def enter_empty_namespaces() -> bool:
    """Move this process, which has one thread, into a network namespace where not even loopback is up, and into an IPC
    namespace of its own. Returns whether that took a user namespace, as it does for whoever is not root.

    What is open stays open: a listener goes on listening where it was bound. Raises OSError where the kernel or its
    settings forbid it.
    """
    if _has_capability(_SYS_ADMIN):
        syscall("unshare", _NEWNET | _NEWIPC)
        return False
    user, group = os.geteuid(), os.getegid()
    syscall("unshare", _NEWUSER | _NEWNET | _NEWIPC)
    # Without a map this user would be nobody, and could not write its own files.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def drop_capabilities() -> None:
    """Give every capability up, in all sets, so that user 0 too is only the owner of its files. Raises OSError."""
    if _has_capability(_SETPCAP):
        for capability in range(64):
            try:
                prctl(_PR_CAPBSET_READ, capability)
            except OSError:
                break  # the kernel knows no more of them
            prctl(_PR_CAPBSET_DROP, capability)
        prctl(_PR_SET_SECUREBITS, _SECURE_BITS)
    with contextlib.suppress(OSError):
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, nothing) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)}: capset")


def network_namespace(pid: int | str = "self") -> str:
    """The identity of a process's network namespace, `net:[number]`."""
    return os.readlink(f"/proc/{pid}/ns/net")


def process_status(pid: int | str = "self") -> dict[str, str]:
    """/proc/PID/status, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def packets(pid: int | str = "self") -> dict[str, int]:
    """What the interfaces of a process's network namespace have received and sent, and what IP counted there.

    Keys: `NAME.received` and `NAME.sent`, in packets, for each interface; `ip.*` and `ip6.*` for the kernel's own
    counters, which see a packet before any interface does. All of it is 0 where nothing was ever sent.
    """
    counted: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        counted[f"{name.strip()}.received"], counted[f"{name.strip()}.sent"] = int(fields[1]), int(fields[9])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines() if line.startswith("Ip:")]
    names, values = rows[0][1:], rows[1][1:]
    counted |= {f"ip.{n}": int(v) for n, v in zip(names, values, strict=True) if n in ("InReceives", "OutRequests")}
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        text = Path(f"/proc/{pid}/net/snmp6").read_text()
        counted |= {f"ip6.{n}": int(v) for n, v in re.findall(r"^Ip6(InReceives|OutRequests)\s+(\d+)$", text, re.M)}
    return counted


def _has_capability(number: int) -> bool:
    return bool(int(process_status()["CapEff"], 16) >> number & 1)

"""What a process may hold open when it is sealed: what is open stays usable whatever is locked later."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Collection

from freehold.core.errors import GovernanceError

_STANDARD = (0, 1, 2)
# Kernel objects that serve a process itself. Rings, namespaces, programs and other processes are none of these.
_OWN_KINDS = ("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[signalfd]", "anon_inode:[timerfd]")
_PLAIN_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts/")


def check_open_files(listeners: Collection[int]) -> list[str]:
    """What else this process holds open that leads to other processes, in words, for the record.

    listeners: descriptors of the sockets at which clients are accepted; they must listen, over TCP or as Unix sockets.
    A terminal, a pipe, a file that may be written, or a Unix socket as standard input or output (as under systemd) is
    named; other sockets, devices and handles of other processes or namespaces are refused with GovernanceError.
    """
    named = []
    for text in os.listdir("/proc/self/fd"):
        number = int(text)
        try:
            target, kind = os.readlink(f"/proc/self/fd/{number}"), os.fstat(number).st_mode
        except OSError:
            continue  # the one that listdir itself used
        if stat.S_ISREG(kind) and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            named.append(f"descriptor {number} is the file {target}, open for writing")
        if number in listeners:
            _check_listener(number)
        elif stat.S_ISSOCK(kind):
            named.append(_standard_socket(number))
        elif stat.S_ISFIFO(kind):
            named.append(f"descriptor {number} is a pipe")
        elif stat.S_ISBLK(kind) or (stat.S_ISCHR(kind) and not target.startswith(_PLAIN_DEVICES)):
            raise GovernanceError(f"Descriptor {number} is the device {target}; close it before sealing.")
        elif stat.S_ISCHR(kind) and target.startswith(("/dev/tty", "/dev/pts/")):
            named.append(f"descriptor {number} is the terminal {target}")
        elif target.startswith("anon_inode:") and target not in _OWN_KINDS:
            raise GovernanceError(f"Descriptor {number} is {target}, a way past the seal; close it before sealing.")
        elif target.startswith(("net:[", "mnt:[", "user:[", "pid:[", "ipc:[", "pidfd:")):
            raise GovernanceError(f"Descriptor {number} is {target}, a way back out; close it before sealing.")
    return sorted(named)


def _check_listener(number: int) -> None:
    with socket.socket(fileno=os.dup(number)) as listener:
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise GovernanceError(f"Descriptor {number} was given as a listener, but does not listen.")


def _standard_socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as found:
        if number not in _STANDARD or found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM:
            raise GovernanceError(
                f"Descriptor {number} is a socket ({found.family!r}, {found.type!r}) that was open before "
                "sealing: what is written to it would leave. Close it, or do not hand it down to this process."
            )
    return f"descriptor {number} is a Unix socket of whoever started this process"

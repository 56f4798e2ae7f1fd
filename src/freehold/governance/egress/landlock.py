"""Landlock, the third layer: no TCP, no file written outside of named directories, no reach to other processes.

It is used strictly: all that is listed here takes effect, or `LandlockError` says what the kernel lacks. What is
handled stands in `HANDLED`, which goes into every record. Newer kernels offer more (UDP, named Unix sockets); the
filter refuses those already, so nothing rests on it.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from freehold.core.errors import GovernanceError
from freehold.governance.egress.syscalls import syscall

NEEDED_ABI = 6
"""Linux 6.12: the first that keeps signals and abstract Unix sockets inside."""

# linux/landlock.h
_FILE_RIGHTS = {"WRITE_FILE": 1 << 1, "TRUNCATE": 1 << 14, "IOCTL_DEV": 1 << 15}
_DIRECTORY_RIGHTS = {
    "REMOVE_DIR": 1 << 4,
    "REMOVE_FILE": 1 << 5,
    "MAKE_CHAR": 1 << 6,
    "MAKE_DIR": 1 << 7,
    "MAKE_REG": 1 << 8,
    "MAKE_SOCK": 1 << 9,
    "MAKE_FIFO": 1 << 10,
    "MAKE_BLOCK": 1 << 11,
    "MAKE_SYM": 1 << 12,
    "REFER": 1 << 13,
}
_NET_RIGHTS = {"BIND_TCP": 1 << 0, "CONNECT_TCP": 1 << 1}
_SCOPES = {"ABSTRACT_UNIX_SOCKET": 1 << 0, "SIGNAL": 1 << 1}

HANDLED: dict[str, tuple[str, ...]] = {
    "fs": (*_FILE_RIGHTS, *_DIRECTORY_RIGHTS),
    "net": tuple(_NET_RIGHTS),
    "scoped": tuple(_SCOPES),
}
"""What is refused unless a rule allows it; no rule allows anything of `net` and `scoped`."""

# In a directory that may be written: files and directories, but no device, no socket, no pipe.
_WRITABLE = ("WRITE_FILE", "TRUNCATE", "REMOVE_DIR", "REMOVE_FILE", "MAKE_DIR", "MAKE_REG", "MAKE_SYM", "REFER")
_HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")

_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1


class LandlockError(GovernanceError):
    """This kernel cannot do all that the layer needs."""


def abi() -> int:
    """The version of the kernel's Landlock; 0 where it has none or it is switched off."""
    try:
        return syscall("landlock_create_ruleset", None, 0, _CREATE_VERSION)
    except OSError:
        return 0


def restrict(writable: Iterable[Path]) -> None:
    """Restrict this thread, and all that it starts, for good. writable: directories, which must exist.

    Reading and running files stays free. Raises LandlockError, before anything took effect.
    """
    found = abi()
    if found < NEEDED_ABI:
        raise LandlockError(f"The kernel's Landlock has ABI {found}; {NEEDED_ABI} is needed (Linux 6.12).")
    rights = _FILE_RIGHTS | _DIRECTORY_RIGHTS
    attributes = struct.pack("=QQQ", sum(rights.values()), sum(_NET_RIGHTS.values()), sum(_SCOPES.values()))
    try:
        ruleset = syscall("landlock_create_ruleset", attributes, len(attributes), 0)
        try:
            for directory in writable:
                _allow(ruleset, directory, sum(rights[name] for name in _WRITABLE))
            for device in _HARMLESS_DEVICES:
                _allow(ruleset, Path(device), sum(_FILE_RIGHTS.values()))
            syscall("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise LandlockError(f"Landlock cannot be set up: {error}.") from error


def _allow(ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= sum(_FILE_RIGHTS.values())
        # struct landlock_path_beneath_attr is packed.
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)

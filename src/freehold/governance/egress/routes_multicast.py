"""Multicast groups that the inherited listener joins: the kernel keeps them, and reports them, in the outer network.

A group's address is text of the joiner's choice. Here it joins on loopback alone, so that trying reaches nobody's
network; who listens reads the groups of loopback in /proc/net, as every program of the machine can.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from pathlib import Path

_LOOPBACK = 1  # its index in every network namespace
# Sockets of TCP may use these; the older IP_ADD_MEMBERSHIP they may not.
_JOIN_GROUP, _JOIN_SOURCE_GROUP = 42, 46
_SETTLED = 0.2
_WITH_SOURCE = 128  # the first number of groups with a source: those without stay joined beside them
_BYTES_4, _BYTES_6 = 2, 12


def join_groups(listener: socket.socket, token: bytes) -> None:
    """Put a token into groups of IPv4: 239.number.byte.byte. Raises OSError."""
    for group in _groups_4(token, 0):
        listener.setsockopt(socket.IPPROTO_IP, _JOIN_GROUP, group)
    time.sleep(_SETTLED)


def join_source_groups(listener: socket.socket, token: bytes) -> None:
    """The same by groups with a source, which can be text too. Raises OSError."""
    source = _storage(b"\x7f\0\0\1")
    for group in _groups_4(token, _WITH_SOURCE):
        listener.setsockopt(socket.IPPROTO_IP, _JOIN_SOURCE_GROUP, group + source)
    time.sleep(_SETTLED)


def join_groups_6(listener: socket.socket | None, token: bytes) -> None:
    """Put a token into groups of IPv6: ff0e, a number, twelve bytes. Raises OSError."""
    if listener is None:
        raise OSError(errno.EAFNOSUPPORT, "nothing can listen over IPv6")
    for number, part in enumerate(_parts(token, _BYTES_6)):
        group = struct.pack("=HHI", socket.AF_INET6, 0, 0) + struct.pack("!HH12s", 0xFF0E, number, part) + bytes(104)
        listener.setsockopt(socket.IPPROTO_IPV6, _JOIN_GROUP, struct.pack("@I4x", _LOOPBACK) + group)
    time.sleep(_SETTLED)


def joined_tokens() -> bytes:
    """What the groups of this network's loopback spell: IPv4, IPv4 with a source, IPv6; a space between them."""
    texts: list[dict[int, bytes]] = [{}, {}, {}]
    with contextlib.suppress(FileNotFoundError):
        device = ""
        for line in Path("/proc/net/igmp").read_text().splitlines()[1:]:
            words = line.split()
            if not line.startswith("\t"):
                device = words[1]
                continue
            group = bytes.fromhex(words[0])[::-1]
            if device == "lo" and group[0] == 239:
                texts[group[1] // _WITH_SOURCE][group[1]] = group[2:]
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/net/igmp6").read_text().splitlines():
            _, device, text, *_ = line.split()
            group = bytes.fromhex(text)
            if device == "lo" and group[:2] == b"\xff\x0e":
                texts[2][group[3]] = group[4:]
    return b" ".join(b"".join(parts[number] for number in sorted(parts)).rstrip(b"\0") for parts in texts)


def _groups_4(token: bytes, first: int) -> list[bytes]:
    """struct group_req for each part of the token, numbered from `first`."""
    parts = enumerate(_parts(token, _BYTES_4), first)
    return [struct.pack("@I4x", _LOOPBACK) + _storage(bytes([239, number]) + part) for number, part in parts]


def _storage(address: bytes) -> bytes:
    """struct sockaddr_storage of an IPv4 address."""
    return struct.pack("=HH4s120x", socket.AF_INET, 0, address)


def _parts(token: bytes, size: int) -> list[bytes]:
    return [token[at : at + size].ljust(size, b"\0") for at in range(0, len(token), size)]

"""A connection made by io_uring alone: the calls that a filter looks at are never made."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct

from freehold.governance.egress.syscalls import syscall

_OP_CONNECT, _OP_SEND, _OP_SOCKET = 16, 26, 45
_GET_EVENTS = 1
_OFFSET_CQ, _OFFSET_SQES = 0x8000000, 0x10000000
_ENTRIES = 4
_SQE_BYTES, _CQE_BYTES = 64, 16


class _Ring:
    """A ring of four entries, used one call at a time."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(120)
        self._descriptor = syscall("io_uring_setup", _ENTRIES, parameters)
        # struct io_uring_params: ten words, then the offsets of the two rings, ten words each.
        words = struct.unpack("=30I", parameters.raw)
        self._sq, self._cq = words[10:20], words[20:30]
        sq_bytes = self._sq[6] + 4 * words[0]
        cq_bytes = self._cq[5] + _CQE_BYTES * words[1]
        self._sq_ring = mmap.mmap(self._descriptor, sq_bytes, mmap.MAP_SHARED, offset=0)
        self._cq_ring = mmap.mmap(self._descriptor, cq_bytes, mmap.MAP_SHARED, offset=_OFFSET_CQ)
        self._sqes = mmap.mmap(self._descriptor, _SQE_BYTES * words[0], mmap.MAP_SHARED, offset=_OFFSET_SQES)

    def call(self, operation: int, descriptor: int, *, address: int = 0, length: int = 0, offset: int = 0) -> int:
        """Submit one operation and wait for its result. Raises OSError."""
        tail = self._word(self._sq_ring, self._sq[1])
        place = tail & self._word(self._sq_ring, self._sq[2])
        entry = struct.pack("=BBHiQQI36x", operation, 0, 0, descriptor, offset, address, length)
        self._sqes[place * _SQE_BYTES : (place + 1) * _SQE_BYTES] = entry
        self._put(self._sq_ring, self._sq[6] + 4 * place, place)
        self._put(self._sq_ring, self._sq[1], tail + 1)
        syscall("io_uring_enter", self._descriptor, 1, 1, _GET_EVENTS, None, 0)
        head = self._word(self._cq_ring, self._cq[0])
        at = self._cq[5] + _CQE_BYTES * (head & self._word(self._cq_ring, self._cq[2]))
        _, result, _ = struct.unpack("=QiI", self._cq_ring[at : at + _CQE_BYTES])
        self._put(self._cq_ring, self._cq[0], head + 1)
        if result < 0:
            raise OSError(-result, f"{os.strerror(-result)}: operation {operation} of a ring")
        return int(result)

    @staticmethod
    def _word(ring: mmap.mmap, offset: int) -> int:
        return int(struct.unpack("=I", ring[offset : offset + 4])[0])

    @staticmethod
    def _put(ring: mmap.mmap, offset: int, value: int) -> None:
        ring[offset : offset + 4] = struct.pack("=I", value)


def send_by_ring(port: int, token: bytes) -> None:
    """Send a token to a TCP port of loopback. Raises OSError; ENOSYS or EPERM where rings are switched off."""
    ring = _Ring()
    address = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1"), 16
    )
    text = ctypes.create_string_buffer(token, len(token))
    try:
        out = ring.call(_OP_SOCKET, socket.AF_INET, offset=socket.SOCK_STREAM)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 5.19 makes no sockets by ring
            raise
        out = syscall("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
    ring.call(_OP_CONNECT, out, address=ctypes.addressof(address), offset=16)
    ring.call(_OP_SEND, out, address=ctypes.addressof(text), length=len(token))

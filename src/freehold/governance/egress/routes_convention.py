"""The same calls in other calling conventions of the processor, where their numbers mean other calls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct

from freehold.governance.egress.syscalls import machine, syscall

_MAP_32BIT = 0x40
_X32 = 0x40000000
_SOCKET_32, _CONNECT_32, _WRITE_32 = 359, 362, 4

# push rbx; mov eax, edi; mov ebx, esi; xchg ecx, edx (third, second); int 0x80; pop rbx; ret
# in: edi number, esi first, edx second, ecx third
_STUB = bytes.fromhex("53 89f8 89f3 87ca cd80 5b c3")


def send_by_32_bit_calls(port: int, token: bytes) -> None:
    """Send a token to a TCP port of loopback by `int 0x80`. Raises OSError, and kills the process where the kernel
    knows no such calls."""
    if machine().name != "x86_64":
        raise OSError(errno.ENOSYS, "this processor has no such calls")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    # Addresses are of 32 bits there: code and data stand low.
    page = libc.mmap(None, mmap.PAGESIZE, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT, -1, 0)
    if page in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "no low memory")
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1")
    ctypes.memmove(page, _STUB, len(_STUB))
    ctypes.memmove(page + 512, address, len(address))
    ctypes.memmove(page + 1024, token, len(token))
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)(page)
    out = _checked(call(_SOCKET_32, socket.AF_INET, socket.SOCK_STREAM, 0))
    _checked(call(_CONNECT_32, out, page + 512, len(address)))
    _checked(call(_WRITE_32, out, page + 1024, len(token)))


def send_by_x32_calls(port: int, token: bytes) -> None:
    """The same with numbers of x32. Raises OSError; ENOSYS where the kernel knows none."""
    kind = machine()
    if kind.name != "x86_64":
        raise OSError(errno.ENOSYS, "this processor has no such calls")
    number = kind.number("socket")
    assert number is not None
    out = syscall(_X32 | number, socket.AF_INET, socket.SOCK_STREAM, 0)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1")
    number = kind.number("connect")
    assert number is not None
    syscall(_X32 | number, out, address, len(address))
    os.write(out, token)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result

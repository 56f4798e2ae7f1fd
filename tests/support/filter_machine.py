"""The kernel's side of a seccomp filter, small enough to read: classic BPF over struct seccomp_data."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_MASK = 0xFFFFFFFF


def run_filter(code: bytes, number: int, arch: int, arguments: Sequence[int]) -> int:
    """What the filter returns for one system call. Raises AssertionError for an instruction that no filter may have."""
    padded = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, *(0,) * (6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", number & _MASK, arch, 0, *padded)
    lines = [struct.unpack("<HBBI", code[at : at + 8]) for at in range(0, len(code), 8)]
    word = place = 0
    while True:
        operation, yes, no, k = lines[place]
        place += 1
        if operation == 0x06:
            return int(k)
        if operation == 0x20:
            assert k % 4 == 0
            (word,) = struct.unpack_from("<I", data, k)
        elif operation == 0x54:
            word &= k
        elif operation == 0x05:
            place += k
        else:
            holds = {0x15: word == k, 0x25: word > k, 0x35: word >= k, 0x45: bool(word & k)}[operation]
            place += yes if holds else no

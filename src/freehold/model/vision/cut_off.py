"""Whether the end of a video file is missing, by the lengths that it gives itself.

FFmpeg reads such a file as far as it goes, and nothing would say that the rest was not seen.
"""

from __future__ import annotations

_MOST_BOXES = 100_000
"""Boxes of an MP4 that are looked at; a fragment of a second has two."""
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra sidx ssix emsg prft free skip wide uuid meta meco pdin pnot udta".split()
)
"""The boxes of an MP4's first level. Others are a camera's own if one of these follows, and else marks of another
program behind the film."""
_MOST_PIECES = 2_000_000
"""Pieces of a GIF's blocks that are looked at; 255 bytes each are the usual."""
_UNKNOWN_RIFF = (0, 2**32 - 1)
"""What stands for the length of an AVI that could not be filled in when it was written."""


def is_cut_off(data: bytes, name: str) -> bool:
    """Whether the file is shorter than it says. name: "mp4", "matroska", "avi" or "gif". One that does not say, as
    streams do not, or that is cut just between two of its pieces, counts as whole; a GIF has a mark at its end."""
    return {"mp4": _mp4, "matroska": _matroska, "avi": _avi, "gif": _gif}[name](data)


def _mp4(data: bytes) -> bool:
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > len(data):
            return False
        known = data[at + 4 : at + 8] in _BOXES
        size, least = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, least = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size < least:  # 0: it reaches to the end, whatever that is; else damaged, which FFmpeg will say
            return False
        at += size
        if not known and data[at + 4 : at + 8] not in _BOXES:
            return False
        if at > len(data):
            return True
    return False


def _avi(data: bytes) -> bool:
    at = 0
    while data[at : at + 4] == b"RIFF":  # large ones have several
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if size in _UNKNOWN_RIFF:
            return False
        at += 8 + size + size % 2
    return at > len(data) + 1  # the filling byte behind an odd length may be left out


def _gif(data: bytes) -> bool:
    """Of its blocks, each with a chain of pieces of up to 255 bytes behind it."""
    if len(data) < 13:
        return True
    at = 13 + _colours_nbytes(data[10])
    left = _MOST_PIECES
    while at < len(data):
        if data[at] == 0x21:  # an extension
            at += 2
        elif data[at] == 0x2C and at + 10 <= len(data):  # a picture
            at += 11 + _colours_nbytes(data[at + 9])
        else:
            return data[at] == 0x2C  # 0x3B: the end; else damaged, or marks of another program
        size = 1
        while size:
            left -= 1
            if at >= len(data) or not left:
                return left > 0
            size = data[at]
            at += 1 + size
    return True


def _colours_nbytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _matroska(data: bytes) -> bool:
    """Of the header and the segment, which holds all the rest."""
    at = 0
    for _ in range(2):
        _, at, _ = _number(data, at)
        size, at, unknown = _number(data, at)
        if unknown or at > len(data):
            return at > len(data)
        at += size
    return at > len(data)


def _number(data: bytes, at: int) -> tuple[int, int, bool]:
    """A number of EBML, where it ends, and whether it is the one for an unknown size: its leading zeros say how many
    bytes it has. Behind the end of the data it is 0."""
    first = data[at] if at < len(data) else 0x80
    length = 9 - first.bit_length()
    most = 2 ** (7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & most
    return value, at + length, value == most

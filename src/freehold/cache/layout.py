"""How a record lies in its slot, and a slot in its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from freehold.core.axes import ceil_div
from freehold.core.errors import ArgumentError

PAGE_BYTES = 4096
CHECKSUM_BYTES = 16
_FIXED_HEADER_BYTES = 120
_DEFAULT_SEGMENT_BYTES = 4 << 30
MOST_RECORD_BYTES = 1 << 32
"""Of a label that says more, nothing can be read: no block is so large, and there is no memory for one."""


def page_aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return ceil_div(nbytes, PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class PartPlace:
    """Where a part lies: its number, its first byte counted from the record's, its size."""

    name: str
    index: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class RecordLayout:
    """The parts of every record of an identity.

    block_tokens: token ids in a block. parts: (name, bytes) in the order in which they lie in the record.
    segment_bytes: size of a data file, rounded down to whole records; a file holds one record at least.
    Raises ArgumentError if a name comes twice, a size is not positive, or a record has more than MOST_RECORD_BYTES.
    """

    block_tokens: int
    parts: tuple[tuple[str, int], ...]
    segment_bytes: int = _DEFAULT_SEGMENT_BYTES

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parts]
        if not names or len(set(names)) != len(names):
            raise ArgumentError(f"parts are named {names}; a record needs parts, each with a name of its own")
        for name, nbytes in (("block_tokens", self.block_tokens), ("segment_bytes", self.segment_bytes), *self.parts):
            if nbytes < 1:
                raise ArgumentError(f"{name} is {nbytes}; it must be at least 1")
        if self.record_bytes > MOST_RECORD_BYTES:
            raise ArgumentError(f"a record has {self.record_bytes} bytes; {MOST_RECORD_BYTES} are the most")

    @cached_property
    def header_bytes(self) -> int:
        """Bytes of a header without its padding."""
        return _FIXED_HEADER_BYTES + 8 * self.block_tokens + CHECKSUM_BYTES * (len(self.parts) + 1)

    @cached_property
    def places(self) -> dict[str, PartPlace]:
        """Each part's place, by name."""
        places, offset = {}, page_aligned(self.header_bytes)
        for index, (name, nbytes) in enumerate(self.parts):
            places[name] = PartPlace(name, index, offset, nbytes)
            offset += page_aligned(nbytes)
        return places

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of a slot: the header and all parts, each padded to whole pages."""
        return page_aligned(self.header_bytes) + sum(page_aligned(nbytes) for _, nbytes in self.parts)

    @cached_property
    def slots_per_segment(self) -> int:
        """Records in one data file."""
        return max(1, self.segment_bytes // self.record_bytes)

    @cached_property
    def canonical(self) -> bytes:
        """The layout as bytes that are the same for equal layouts."""
        fields = {"block_tokens": self.block_tokens, "parts": self.parts, "segment_bytes": self.segment_bytes}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def place(self, part: str) -> PartPlace:
        """Where a part lies. Raises ArgumentError for an unknown name."""
        place = self.places.get(part)
        if place is None:
            raise ArgumentError(f"part {part!r} is unknown; a record has {', '.join(self.places)}")
        return place

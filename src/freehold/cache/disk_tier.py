"""Between the slots in memory and the block store: saves blocks behind the computing, and brings them back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
import torch

from freehold.cache.layout import RecordLayout
from freehold.cache.paging import KvPager
from freehold.cache.prefix import block_hash
from freehold.cache.record import TOKEN_BYTES, Record, pack_tokens
from freehold.cache.store import BlockStore
from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.errors import LostBlocksError


def record_layout(specs: Items[LaneSpec], block_tokens: int, dtype: torch.dtype) -> RecordLayout:
    """The parts of a block: "N/kv" for K and V of layer N, "N/index" for the lanes of its index branch."""
    parts = []
    for number, spec in enumerate(specs):
        one = LayerLanes.allocate(spec, 1, block_tokens, dtype)
        parts.append((f"{number}/kv", _nbytes([one.k, one.v])))
        if one.index is not None:
            parts.append((f"{number}/index", _nbytes(list(one.index_tensors()))))
    return RecordLayout(block_tokens, tuple(parts))


def _as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor as (slots, bytes of one)."""
    return tensor.view(torch.uint8).flatten(1).numpy()


def _nbytes(tensors: Items[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class DiskTier:
    """The disk's side of every slot.

    A slot is *clean* once its block is on the disk. What is saved must not change before `busy` says no.
    K and V of sparse layers stay on the disk until attention chooses them; all other lanes are read at once.
    """

    def __init__(self, store: BlockStore, lanes: Items[LayerLanes], num_slots: int) -> None:
        self.store = store
        self.read_bytes = self.written_bytes = 0
        self.give_way: Callable[[], bool] = lambda: False
        """See `PageSource`. Set by whoever keeps blocks."""
        self.pagers: dict[int, KvPager] = {}
        self._resident: dict[str, list[np.ndarray]] = {}  # part -> its tensors' bytes, (num_slots, n) each
        self._clean = np.zeros(num_slots, dtype=bool)
        self._records: list[Record | None] = [None] * num_slots
        self._queue: deque[tuple[bytes, tuple[int, ...], int]] = deque()  # parent, tokens, slot
        self._busy: dict[bytes, int] = {}  # key -> slot of blocks on their way to the disk
        self._busy_slots: set[int] = set()
        self._freed: list[int] = []
        for number, layer in enumerate(lanes):
            index = list(layer.index_tensors())
            if index:
                self.pagers[number] = KvPager(f"{number}/kv", layer, num_slots, self)
                self._resident[f"{number}/index"] = [_as_bytes(t) for t in index]
            else:
                self._resident[f"{number}/kv"] = [_as_bytes(layer.k), _as_bytes(layer.v)]

    # Saving.

    def save(self, parent: bytes, tokens: tuple[int, ...], slot: int) -> None:
        """Hands over a full block; it is on the disk some time later."""
        key = block_hash(parent, tokens)
        self._busy[key] = slot
        self._busy_slots.add(slot)
        self._queue.append((parent, tokens, slot))
        self.poll()

    def busy(self, slot: int) -> bool:
        """Whether the slot's block is on its way to the disk."""
        return slot in self._busy_slots

    def freed(self) -> list[int]:
        """The slots that are no longer busy, since the last call."""
        freed, self._freed = self._freed, []
        return freed

    def poll(self) -> None:
        """Passes on what waits, and learns what is done."""
        while self._queue:
            parent, tokens, slot = self._queue[0]
            if not self.store.put(parent, tokens, self._parts(slot)):
                break
            self._queue.popleft()
        for completion in self.store.completed():
            slot = self._busy.pop(completion.key)
            record = self.store.find(completion.key) if completion.stored else None
            if record is not None:
                self._records[slot] = record
                self._clean[slot] = True
                self.written_bytes += self.store.layout.record_bytes
            self._busy_slots.discard(slot)
            self._freed.append(slot)

    def _parts(self, slot: int) -> dict[str, list[memoryview]]:
        parts = {name: [memoryview(t[slot]) for t in tensors] for name, tensors in self._resident.items()}
        parts.update({pager.part: pager.buffers(slot) for pager in self.pagers.values()})
        return parts

    # Bringing back.

    def chain(self, parent: bytes, tokens: Items[int], begin: int, end: int) -> list[Record]:
        """The stored blocks that tokens[begin:end] begins with, after the block `parent`, in order."""
        size, records = self.store.layout.block_tokens, []
        for first in range(begin, end - size + 1, size):
            record = self.store.find(block_hash(parent, tokens[first : first + size]))
            if record is None:
                break
            records.append(record)
            parent = record.key
        return records

    def closest(self, parent: bytes, tokens: Items[int]) -> tuple[Record | None, int]:
        """The stored block after `parent` that shares the most leading tokens with `tokens`, and how many."""
        best, most, packed = None, 0, pack_tokens(tuple(tokens))
        for record in self.store.children(parent):
            # There may be many, most of which differ early.
            while most < len(tokens) and record.token_bytes.startswith(packed[: (most + 1) * TOKEN_BYTES]):
                best, most = record, most + 1
        return best, most

    def restore(self, records: Items[Record], slots: Items[int]) -> set[bytes]:
        """Reads blocks into slots, all but K and V of sparse layers; returns the keys of those that are lost."""
        reads = [
            (record, name, [memoryview(t[slot]) for t in tensors])
            for record, slot in zip(records, slots, strict=True)
            for name, tensors in self._resident.items()
        ]
        lost = self.store.read_many(reads)
        kept = []
        for record, slot in zip(records, slots, strict=True):
            if record.key in lost:
                continue
            kept.append(slot)
            self._records[slot] = record
            self._clean[slot] = True
        self.read_bytes += sum(self.store.layout.place(name).nbytes for _, name, _ in reads)
        for pager in self.pagers.values():
            pager.set_absent(kept)
        return lost

    # What pagers ask for; see `PageSource`.

    def clean(self) -> np.ndarray:
        """See `PageSource`."""
        return self._clean

    def read(self, part: str, slots: Items[int], into: Items[list[memoryview]]) -> None:
        """See `PageSource`."""
        reads = []
        for slot, buffers in zip(slots, into, strict=True):
            record = self._records[slot]
            assert record is not None, slot
            reads.append((record, part, buffers))
        lost = self.store.read_many(reads)
        self.read_bytes += len(reads) * self.store.layout.place(part).nbytes
        if lost:
            gone = [slot for slot, (record, _, _) in zip(slots, reads, strict=True) if record.key in lost]
            raise LostBlocksError(gone)

    def wait(self) -> None:
        """See `PageSource`."""
        self.poll()
        while self._busy:
            self.store.flush()
            self.poll()

    # Slots.

    def is_stored(self, slot: int) -> bool:
        """Whether the slot is clean."""
        return bool(self._clean[slot])

    def forget(self, slot: int) -> None:
        """The slot is free in memory; the stored block stays."""
        self._clean[slot] = False
        self._records[slot] = None
        for pager in self.pagers.values():
            pager.drop(slot)

    def clear(self) -> None:
        """All slots are free. Waits for what is on its way."""
        self.wait()
        self._freed.clear()
        self._clean[:] = False
        self._records = [None] * len(self._records)
        for pager in self.pagers.values():
            pager.clear()

    def check_integrity(self, used: Items[int]) -> None:
        """Recounts against the slots in use. Raises AssertionError on any disagreement."""
        assert set(np.flatnonzero(self._clean).tolist()) <= set(used), "a free slot counts as stored"
        assert self._busy_slots == set(self._busy.values()) <= set(used), "a free slot is on its way to the disk"
        for pager in self.pagers.values():
            pager.check_integrity(used)
        self.store.check_integrity()

    def copy(self, source: int, target: int) -> None:
        """Copies K and V of paged layers."""
        for pager in self.pagers.values():
            pager.copy(source, target)

"""Paging: K and V of a sparse layer lie in fewer frames than there are slots; the others are read when attention
chooses them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from freehold.core.blocks import LayerLanes, Part, Spans
from freehold.core.errors import CapacityError

_NO_FRAME = -1


class PageSource(Protocol):
    """What lies behind the frames."""

    def clean(self) -> np.ndarray:
        """bool (num_slots,): slots whose blocks can be read again."""

    def read(self, part: str, slots: Items[int], into: Items[list[memoryview]]) -> None:
        """Fills buffers with a part of each slot's block. Raises LostBlocksError if some are lost."""

    def wait(self) -> None:
        """Waits until every block that is on its way to the disk is there, and so is clean."""

    @property
    def give_way(self) -> Callable[[], bool]:
        """Frees a slot that is not clean and that nobody uses; says False if there is none."""


class KvPager:
    """Frames of one layer. A slot has at most one frame; the frame of a clean slot may be taken for another one, least
    recently used first.

    part: name of K and V of this layer in the source.
    """

    def __init__(self, part: str, lanes: LayerLanes, num_slots: int, source: PageSource) -> None:
        self.part = part
        self.num_frames = int(lanes.k.shape[0])
        self.num_found = 0  # chosen blocks that were in memory, and that had to be read
        self.num_read = 0
        self._source = source
        self._bytes = [t.view(torch.uint8).flatten(1).numpy() for t in (lanes.k, lanes.v)]
        self._identical = self.num_frames == num_slots  # then a slot's frame has its own number
        self._frame_of = np.full(num_slots, _NO_FRAME, dtype=np.int32)
        self._slot_of = np.full(self.num_frames, _NO_FRAME, dtype=np.int32)
        self._used = np.zeros(self.num_frames, dtype=np.int64)
        self._free = list(range(self.num_frames - 1, -1, -1))
        self._absent = np.zeros(num_slots, dtype=bool)  # slots whose block lies in the source only
        self._num_absent = 0
        self._clock = 0

    @property
    def direct(self) -> bool:
        """See `Pager`."""
        return self._identical and self._num_absent == 0

    # What the pool says of its slots.

    def set_absent(self, slots: Items[int]) -> None:
        """The slots' blocks were restored: their K and V lie in the source."""
        self._mark_absent(np.asarray(slots, dtype=np.int64), True)

    def drop(self, slot: int) -> None:
        """The slot is free, and so is its frame."""
        if self._absent[slot]:
            self._mark_absent(np.array([slot]), False)
        elif self._frame_of[slot] != _NO_FRAME:
            self._vacate(self._frame_of[[slot]])

    def clear(self) -> None:
        """Every slot is free."""
        self._mark_absent(np.flatnonzero(self._absent), False)
        self._vacate(self._frame_of[self._frame_of != _NO_FRAME])

    def buffers(self, slot: int) -> list[memoryview]:
        """K and V of a slot that has a frame."""
        frame = int(self._frame_of[slot])
        assert frame != _NO_FRAME, slot
        return [memoryview(lane[frame]) for lane in self._bytes]

    def copy(self, source: int, target: int) -> None:
        """Copies K and V of one slot into another, which is new."""
        self._clock += 1
        self._bring(np.array([source]))
        self._place(np.array([target]))
        for lane in self._bytes:
            lane[self._frame_of[target]] = lane[self._frame_of[source]]

    # What attention asks for; see `Pager`.

    def writable(self, slots: torch.Tensor) -> torch.Tensor:
        """See `Pager`."""
        self._clock += 1
        wanted = np.unique(slots.numpy())
        self._place(wanted[self._frame_of[wanted] == _NO_FRAME])
        return torch.from_numpy(self._frame_of[slots.numpy()])

    def parts(self, spans: Spans, block_ids: torch.Tensor | None) -> tuple[int, Iterator[Part]]:
        """See `Pager`."""
        ids, slots = _chosen(spans, block_ids)
        present = self._frame_of[slots] != _NO_FRAME
        self.num_found += int(present.sum())
        self.num_read += int((~present).sum())
        cuts = self._cuts(ids, slots)
        return len(cuts) - 1, self._iterate(spans, ids, slots, cuts)

    def _cuts(self, ids: np.ndarray, slots: np.ndarray) -> list[int]:
        """Where to cut the blocks (ascending) so that each piece fits into the frames that may be taken."""
        pinned = ~self._source.clean()[slots] & (self._frame_of[slots] != _NO_FRAME)
        # Where kept blocks that are not on the disk have most of the frames, there would be many small pieces.
        wanted = min(int((~pinned).sum()), self.num_frames // 2)
        while (usable := self._num_usable()) < wanted and self._source.give_way():
            pass
        cuts, load = [0], 0
        starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
        for begin, end in zip(starts, np.r_[starts[1:], len(ids)], strict=True):
            more = int((~pinned[begin:end]).sum())
            if load and load + more > usable:
                cuts.append(int(begin))
                load = 0
            load += more
        return [*cuts, len(ids)]

    def _num_usable(self) -> int:
        """Frames that are free or may be taken."""
        in_use = self._slot_of[self._slot_of != _NO_FRAME]
        return self.num_frames - int((~self._source.clean()[in_use]).sum())

    def _iterate(self, spans: Spans, ids: np.ndarray, slots: np.ndarray, cuts: list[int]) -> Iterator[Part]:
        table = spans.table.numpy()
        for begin, end in itertools.pairwise(cuts):
            self._clock += 1
            self._bring(slots[begin:end])
            frames = torch.from_numpy(self._frame_of[table])
            last = int(ids[end - 1]) + 1
            yield Part(int(ids[begin]) if begin else 0, last, replace(spans, table=frames))

    # Frames.

    def bring_all(self) -> None:
        """Reads every block that is not in memory. Raises CapacityError where slots share frames."""
        missing = np.flatnonzero(self._absent)
        if len(missing) and not self._identical:
            raise CapacityError(f"{len(missing)} blocks are not in memory; a ram_budget keeps them out")
        self._clock += 1
        self._bring(missing)

    def _bring(self, slots: np.ndarray) -> None:
        """Gives the slots frames that hold their blocks."""
        missing = np.unique(slots[self._frame_of[slots] == _NO_FRAME])
        self._used[self._frame_of[slots[self._frame_of[slots] != _NO_FRAME]]] = self._clock
        if len(missing) == 0:
            return
        self._place(missing)
        try:
            self._source.read(self.part, missing.tolist(), [self.buffers(slot) for slot in missing])
        except BaseException:
            self._vacate(self._frame_of[missing])
            self._mark_absent(missing, True)
            raise

    def _place(self, slots: np.ndarray) -> None:
        """Gives slots without frames one each, of undefined content."""
        if len(slots) == 0:
            return
        if self._identical:
            frames = slots.astype(np.int32)
        else:
            self._make_free(len(slots))
            frames = np.array([self._free.pop() for _ in slots], dtype=np.int32)
        self._frame_of[slots] = frames
        self._slot_of[frames] = slots
        self._used[frames] = self._clock
        self._mark_absent(slots[self._absent[slots]], False)

    def _make_free(self, wanted: int) -> None:
        waited = False
        while (missing := wanted - len(self._free)) > 0:
            taken = np.flatnonzero((self._slot_of != _NO_FRAME) & (self._used < self._clock))
            taken = taken[self._source.clean()[self._slot_of[taken]]]
            if len(taken) >= missing:
                count = min(len(taken), max(missing, self.num_frames // 16))
                oldest = taken[np.argpartition(self._used[taken], count - 1)[:count]]
                self._mark_absent(self._slot_of[oldest], True)
                self._vacate(oldest)
                return
            if not waited:
                self._source.wait()
                waited = True
            elif wanted > self.num_frames or not self._source.give_way():
                raise CapacityError(
                    f"K and V of {wanted} blocks do not fit into {self.num_frames} frames of memory beside blocks that "
                    "are in use and not on the disk; start with a larger ram_budget"
                )

    def _vacate(self, frames: np.ndarray) -> None:
        self._frame_of[self._slot_of[frames]] = _NO_FRAME
        self._slot_of[frames] = _NO_FRAME
        if not self._identical:
            self._free.extend(frames.tolist())

    def _mark_absent(self, slots: np.ndarray, absent: bool) -> None:
        self._absent[slots] = absent
        self._num_absent += len(slots) if absent else -len(slots)

    def check_integrity(self, used: Items[int]) -> None:
        """Recounts against the slots in use. Raises AssertionError on any disagreement."""
        with_frame = np.flatnonzero(self._frame_of != _NO_FRAME)
        assert (self._slot_of[self._frame_of[with_frame]] == with_frame).all(), "frames and slots disagree"
        assert self._num_absent == int(self._absent.sum()), "the count of absent slots is wrong"
        assert not self._absent[with_frame].any(), "a slot with a frame counts as absent"
        located = set(with_frame.tolist()) | set(np.flatnonzero(self._absent).tolist())
        assert located <= set(used), "a free slot has K and V"
        if not self._identical:
            assert len(self._free) + len(with_frame) == self.num_frames, "a frame is lost"


def _chosen(spans: Spans, block_ids: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """The chosen blocks of all spans: their ids, ascending, and their slots."""
    table, begins = spans.table.numpy(), spans.table_begin.numpy()
    if block_ids is None:
        places = np.arange(len(table))
        ids = places - np.repeat(begins, np.diff(np.r_[begins, len(table)]))
    else:
        chosen = block_ids.numpy().reshape(block_ids.shape[0], -1)
        offsets = np.repeat(begins, np.diff(spans.row_begin.numpy()))
        places = np.unique((chosen + offsets[:, None])[chosen >= 0])
        ids = places - begins[np.searchsorted(begins, places, side="right") - 1]
    order = np.argsort(ids, kind="stable")
    return ids[order], table[places[order]]

"""Whether a model fits: where weights, K and V may lie, how much memory each of these ways needs, and what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.engine.memory import LEAST_FRAMES
from freehold.plan.lanes import CacheCost
from freehold.plan.subject import Subject
from freehold.plan.weights import WeightCost

RESERVED_NBYTES = 2**30
"""For the system, the interpreter, torch and the values between the layers of a chunk."""

_LEAST_EXPERTS = 2
"""Streamed experts in memory at the least: one that is computed and one that is being read."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked: `users` sessions of `context` tokens each, within `ram` bytes."""

    context: int
    users: int
    ram: int


@dataclass(frozen=True, slots=True)
class Way:
    """One way to place a model in memory.

    streamed: whether routed experts are read from the disk as tokens use them. paged: whether K and V of sparse layers
    beyond their frames lie in the block store. weights, cache, frames: bytes in memory at the least; with streamed
    experts, weights hold two of them; frames are 0 unless paged. stored: bytes of the sessions in the block store.
    cached_experts: the part of the routed experts that fits into what is left. frames_given: bytes for frames that fit.
    """

    streamed: bool
    paged: bool
    weights: int
    cache: int
    frames: int
    stored: int
    ram: int
    cached_experts: float = 1.0
    frames_given: int = 0

    @property
    def need(self) -> int:
        """Bytes of memory at the least."""
        return self.weights + self.cache + self.frames + RESERVED_NBYTES

    @property
    def missing(self) -> int:
        """Bytes of memory that are not there; 0 if it fits."""
        return max(0, self.need - self.ram)

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return not self.missing

    @property
    def name(self) -> str:
        """For tables."""
        return f"{'experts from disk' if self.streamed else 'all in RAM'}{', K/V paged' if self.paged else ''}"


@dataclass(frozen=True, slots=True)
class Fit:
    """A model in one format, on one machine."""

    subject: Subject
    weights: WeightCost
    cache: CacheCost

    @property
    def places_nbytes(self) -> int:
        """Bytes of memory in which all routed experts would lie as they are read from the disk."""
        return self.weights.place * self.subject.num_experts * self.subject.num_moe_layers

    def ways(self, task: Task) -> tuple[Way, ...]:
        """Every way that the model has, the fastest first: experts stream only where there are some, and only K and V
        of sparse layers are paged."""
        streamed = (False, True) if self.weights.expert else (False,)
        paged = (False, True) if self.cache.sparse.layers else (False,)
        return tuple(self._way(task, streamed=s, paged=p) for s in streamed for p in paged)

    def best(self, task: Task) -> Way | None:
        """The first way that fits."""
        return next((way for way in self.ways(task) if way.fits), None)

    def most_context(self, task: Task, way: Way) -> int:
        """Most tokens of each session that fit in this way, in whole blocks, up to the model's context; 0: none."""
        room = task.ram - RESERVED_NBYTES - way.weights - way.frames
        blocks = max(0, room) // (self._resident_block(way) * task.users)
        return min(blocks * self.cache.block_tokens, self.subject.config.context_length)

    def most_users(self, task: Task, way: Way) -> int:
        """Most sessions of the asked context that fit in this way; 0: none."""
        room = task.ram - RESERVED_NBYTES - way.weights - way.frames
        return max(0, room) // (self._resident_block(way) * self.cache.blocks(task.context))

    def _resident_block(self, way: Way) -> int:
        return self.cache.block_without_pages if way.paged else self.cache.block

    def _way(self, task: Task, *, streamed: bool, paged: bool) -> Way:
        blocks = task.users * self.cache.blocks(task.context)
        held = _LEAST_EXPERTS * self.weights.place
        way = Way(
            streamed=streamed,
            paged=paged,
            weights=self.weights.total - self.weights.routed + held if streamed else self.weights.total,
            cache=blocks * (self.cache.block_without_pages if paged else self.cache.block),
            frames=LEAST_FRAMES * self.cache.frame if paged else 0,
            stored=blocks * self.cache.stored if paged else 0,
            ram=task.ram,
        )
        return way if not way.fits else self._share_out(way, task, blocks)

    def _share_out(self, way: Way, task: Task, blocks: int) -> Way:
        """What is left after the least goes to frames, as far as they are of use, and then to experts."""
        left, frames = way.ram - way.need, way.frames
        if way.paged:
            wanted = blocks if not way.streamed else min(blocks, self._chosen_blocks(task))
            frames += min(left, max(0, wanted * self.cache.frame - frames))
            left -= frames - way.frames
        cached = 1.0
        if way.streamed:
            held = way.weights - (self.weights.total - self.weights.routed)
            cached = min(1.0, (held + left) / self.places_nbytes)
        return replace(way, cached_experts=cached, frames_given=frames)

    def _chosen_blocks(self, task: Task) -> int:
        """Blocks that a token of every user may choose, over the KV heads, and as many for those of the last tokens."""
        c = self.subject.config
        return 2 * task.users * c.num_kv_heads * getattr(c, "topk", 0)

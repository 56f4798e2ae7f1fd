"""The least time that a step of the model can take: its products, and the bytes it reads from memory and disk.

Every figure is a bound that the real engine stays below: reads at the bandwidth of a plain stream, products at the rate
of a large square one, nothing for what lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from freehold.core.axes import ceil_div
from freehold.core.config import EngineConfig
from freehold.plan.lanes import CacheCost
from freehold.plan.part import Part
from freehold.plan.subject import Subject
from freehold.plan.weights import WeightCost

Bound = Literal["products", "memory", "disk"]

PREFILL_CHUNK = EngineConfig().prefill_chunk
_MOST_STEPS = 8192
"""Of a prompt that are looked at one by one: four million tokens."""
_OUTSIDE: tuple[Part, ...] = ("embeddings", "head", "routed experts", "vision", "other")


@dataclass(frozen=True, slots=True)
class Rates:
    """read: bytes a second from memory; disk: from the disk. float32, bfloat16: floating-point operations a second."""

    read: float
    float32: float
    bfloat16: float
    disk: float


@dataclass(frozen=True, slots=True)
class Demand:
    """A step's work. weights, attention, index: operations of the products with weights (float32, or 8-bit codes with
    integer_weights), of attention (float32, or bfloat16 with half_attention), and of the index's scores (8-bit codes).
    memory, disk: bytes read."""

    weights: float
    attention: float
    index: float
    memory: float
    disk: float
    half_attention: bool
    integer_weights: bool = False

    def seconds(self, rates: Rates) -> tuple[float, Bound]:
        """The least time, and what it is bound by. Products, memory and disk may all work at the same time."""
        attention = rates.bfloat16 if self.half_attention else rates.float32
        codes = 2 * rates.bfloat16  # the most that products of 8-bit codes reach
        weights = codes if self.integer_weights else rates.float32
        products = self.weights / weights + self.attention / attention + self.index / codes
        times: dict[Bound, float] = {
            "products": products,
            "memory": self.memory / rates.read,
            "disk": self.disk / rates.disk,
        }
        bound = max(times, key=lambda name: times[name])
        return times[bound], bound


@dataclass(frozen=True, slots=True)
class Roofline:
    """What steps of a model demand. cached_experts: the part of all routed experts that lies in memory; the others are
    read from the disk whenever a token uses them. paged_reads: whether every chosen block of K and V is read, too.
    integer_weights: whether products with weights multiply 8-bit codes."""

    subject: Subject
    weights: WeightCost
    cache: CacheCost
    cached_experts: float = 1.0
    paged_reads: bool = False
    integer_weights: bool = False

    def decode(self, streams: int, context: int) -> Demand:
        """One token for each of `streams` sequences, of `context` tokens with it."""
        return self.step(streams, context - 1, 1)

    def prefill_seconds(self, context: int, rates: Rates) -> tuple[float, Bound]:
        """The least time to read a prompt of `context` tokens in chunks, and what most of it is bound by.

        Of very long ones, the first of some chunks in a row stands for the others, which take no less.
        """
        spent: dict[Bound, float] = {}
        chunks = ceil_div(context, PREFILL_CHUNK)
        alike = ceil_div(chunks, _MOST_STEPS)
        for chunk in range(0, chunks, alike):
            start = chunk * PREFILL_CHUNK
            seconds, bound = self.step(1, start, min(PREFILL_CHUNK, context - start)).seconds(rates)
            spent[bound] = spent.get(bound, 0.0) + seconds * min(alike, chunks - chunk)
        return sum(spent.values()), max(spent, key=lambda name: spent[name])

    def step(self, streams: int, start: int, rows: int) -> Demand:
        """`rows` new tokens of each of `streams` sequences that have `start` tokens; one row of each is sampled."""
        layers = self.subject.num_moe_layers
        experts = self.distinct_experts(streams * rows)
        memory = self._weight_nbytes() + layers * experts * self.weights.expert
        memory += streams * self._cache_nbytes(start, rows)
        disk = layers * experts * (1 - self.cached_experts) * self.weights.stored_expert
        if self.paged_reads:
            disk += streams * self._chosen_nbytes(start, rows)
        dense, sparse, scored = self._pairs(start, rows)
        c = self.subject.config
        a_pair = 4 * c.num_q_heads * c.head_dim
        i = self.subject.index
        index = 0 if i is None else 2 * i.num_index_heads * i.index_dim
        return Demand(
            weights=2.0 * streams * (rows * self._inner_parameters() + self._head_parameters()),
            attention=streams * a_pair * (dense * self.cache.dense.layers + sparse * self.cache.sparse.layers),
            index=streams * index * scored * self.cache.sparse.layers,
            memory=memory,
            disk=disk,
            half_attention=self.cache.kv_dtype == "bfloat16",
            integer_weights=self.integer_weights,
        )

    def distinct_experts(self, rows: int) -> float:
        """How many experts of a layer so many tokens use together, if each draws its own evenly."""
        return self.subject.num_experts * (1 - (1 - self.subject.active_share) ** rows)

    def _window(self) -> int:
        i = self.subject.index
        return 0 if i is None else i.topk * i.block_tokens

    def _weight_nbytes(self) -> float:
        """Bytes of the weights that every step reads; one row of an embedding is nothing."""
        tied = self.subject.config.tie_embeddings
        outside = {"routed experts", "vision"} if tied else {"routed experts", "vision", "embeddings"}
        return sum(nbytes for part, nbytes in self.weights.memory.items() if part not in outside)

    def _inner_parameters(self) -> int:
        """Parameters of the matrices and norms that every row passes, the active experts among them."""
        active = self.subject.active
        return sum(n for part, n in active.items() if part not in _OUTSIDE) + active.get("routed experts", 0)

    def _head_parameters(self) -> int:
        c = self.subject.config
        return c.vocab_size * c.hidden_size

    def _cache_nbytes(self, start: int, rows: int) -> float:
        """Bytes of a sequence's blocks that a step has to read once."""
        tokens, per = start + rows, self.cache.block_tokens
        dense, sparse = self.cache.dense, self.cache.sparse
        nbytes = dense.kv * tokens / per + self._chosen_nbytes(start, rows)
        if tokens > self._window():  # otherwise everything is chosen
            nbytes += (sparse.half_codes if rows == 1 else sparse.sketch) * tokens / per
        return nbytes

    def _chosen_nbytes(self, start: int, rows: int) -> float:
        """Bytes of K and V that one query of a sparse layer reads; more queries read no less."""
        return self.cache.sparse.kv * min(start + rows, self._window()) / self.cache.block_tokens

    def _pairs(self, start: int, rows: int) -> tuple[float, float, float]:
        """Pairs of a query and a token: in a dense layer, in a sparse one, and scored by an index head."""
        end, window = start + rows, self._window()
        short = max(0, min(end, window) - start)  # queries that choose everything
        dense = _sum_to(end) - _sum_to(start)
        below = _sum_to(start + short) - _sum_to(start)
        return dense, below + (rows - short) * window, dense - below


def _sum_to(n: int) -> float:
    """1 + 2 + ... + n."""
    return n * (n + 1) / 2

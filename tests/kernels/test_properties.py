"""Every kernel on sizes and values that suit nobody: against the reference, on each instruction set.

Lanes are full of NaN before they are written, slots of several sequences are mixed, tokens are stored in ragged
pieces: what was not stored must not be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.attention.impl import reference
from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from support.instruction_sets import supported
from support.proofs import tried

ISAS = supported()
MOST_TOKENS = 3000
LONG = 98_304
"""Tokens from which a selection with few queries takes another way."""
KEYS = (
    *("plain", "offset", "equal", "few values", "one bfloat16 step", "one float32 step", "two clusters"),
    *("wide norms", "huge", "tiny", "outlier", "no numbers", "zero"),
)
QUERIES = ("plain", "few values", "huge", "tiny", "no numbers", "zero")


@pytest.fixture(autouse=True)
def settings_of_the_process() -> Iterator[None]:
    isa, threads, torch_threads = kernels.isa(), kernels.threads(), torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine its threads wait for each other longer than they compute
    yield
    kernels.use_isa(isa)
    kernels.set_threads(threads)
    torch.set_num_threads(torch_threads)


@dataclass(frozen=True)
class Problem:
    """Sizes of one call, and what its index branch holds. lengths: (tokens in the past, queries) of each span."""

    isa: str
    threads: int
    dtype: torch.dtype
    block_tokens: int
    lengths: tuple[tuple[int, int], ...]
    piece: int
    num_kv_heads: int
    group: int
    head_dim: int
    index_dim: int
    topk: int
    local_blocks: int
    init_blocks: int
    keys: str
    queries: str
    seed: int

    @property
    def options(self) -> dict[str, int]:
        return {"topk": self.topk, "local_blocks": self.local_blocks, "init_blocks": self.init_blocks}

    def use(self, threads: int | None = None) -> None:
        kernels.use_isa(self.isa)
        kernels.set_threads(threads or self.threads)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    block_tokens = draw(st.sampled_from([16, 32, 48, 64, 128, 256]))
    most_blocks = MOST_TOKENS // block_tokens
    topk = draw(st.integers(1, min(40, most_blocks - 2)))
    local_blocks = min(topk, draw(st.sampled_from([1, 1, 2, 3])))
    lengths = []
    for _ in range(draw(st.integers(1, 4))):  # most of them so long that not every block is chosen
        blocks = draw(st.one_of(st.integers(topk, min(most_blocks, topk + 12)), st.integers(0, most_blocks)))
        ragged = draw(st.integers(0, block_tokens - 1))
        lengths.append((blocks * block_tokens + ragged, draw(st.sampled_from([1, 1, 2, 7, 16, 33, 40]))))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    head_dim = draw(st.sampled_from([64, 96, 128, 192, 80, 72, 2, 18, 33, 7]))
    return Problem(
        isa=draw(st.sampled_from(ISAS)),
        threads=draw(st.integers(1, 4)),
        dtype=dtype,
        block_tokens=block_tokens,
        lengths=tuple(lengths),
        piece=draw(st.sampled_from([1, 15, 16, 17, 100, 129, 1000, MOST_TOKENS])),
        num_kv_heads=draw(st.integers(1, 4)),
        group=draw(st.sampled_from([1, 2, 3, 8, 17])),
        head_dim=head_dim + head_dim % 2 if dtype == torch.bfloat16 else head_dim,
        index_dim=draw(st.one_of(st.sampled_from([32, 64, 128, 192]), st.integers(1, 192))),
        topk=topk,
        local_blocks=local_blocks,
        init_blocks=min(topk - local_blocks, draw(st.integers(0, 2))),
        keys=draw(st.sampled_from(KEYS)),
        queries=draw(st.sampled_from(("plain", "plain", *QUERIES))),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def long_problems(draw: st.DrawFn) -> Problem:
    """One query or two over many blocks, beside a short sequence."""
    p = draw(problems())
    return replace(
        p,
        lengths=((draw(st.integers(LONG, LONG + 3000)) + 3 * p.block_tokens, draw(st.integers(1, 2))), p.lengths[0]),
        piece=LONG,
        num_kv_heads=draw(st.integers(1, 4)),
        group=1,
        head_dim=2,
        index_dim=draw(st.sampled_from([1, 20, 32, 64, 128])),
    )


def index_keys(kind: str, rows: int, dim: int) -> torch.Tensor:
    """(rows, dim) that are hard for whoever rounds, bounds or compares them."""
    k, one = torch.randn(rows, dim), torch.randn(1, dim)
    if kind == "offset":
        return k + 100 * one
    if kind == "equal":
        return one.expand(rows, dim).contiguous()
    if kind == "few values":
        return k.round()
    if kind == "one bfloat16 step":
        return one * (1 + 2**-8 * torch.randint(0, 2, (rows, 1)))
    if kind == "one float32 step":
        return torch.where(torch.rand(rows, dim) < 0.02, torch.nextafter(one, torch.tensor(torch.inf)), one)
    if kind == "two clusters":
        return torch.where(torch.rand(rows, 1) < 0.5, 50.0, -50.0) * one + 1e-4 * k
    if kind == "wide norms":
        return k * torch.exp(6 * torch.randn(rows, 1))
    if kind == "outlier":
        k[:, dim // 2] *= 1e4
    if kind == "no numbers":
        for value in (torch.nan, torch.inf, -torch.inf, 3e38):
            k[torch.randint(rows, ()), torch.randint(dim, ())] = value
    return k * {"huge": 1e18, "tiny": 1e-20, "zero": 0.0}.get(kind, 1.0)


def index_queries(kind: str, rows: int, heads: int, dim: int) -> torch.Tensor:
    q = torch.randn(rows, heads, dim)
    if kind == "few values":
        return q.round()
    if kind == "no numbers":
        for value in (torch.nan, torch.inf, -torch.inf, 3e38):
            q[torch.randint(rows, ()), torch.randint(heads, ()), torch.randint(dim, ())] = value
    return q * {"huge": 1e20, "tiny": 1e-25, "zero": 0.0}.get(kind, 1.0)


@dataclass(frozen=True)
class Stored:
    """Tokens of all sequences in lanes, and the spans of the queries at their ends."""

    lanes: LayerLanes
    slots: list[list[int]]
    tokens: list[dict[str, torch.Tensor]]
    spans: Spans


def sequences(p: Problem) -> list[dict[str, torch.Tensor]]:
    """k, v, index_k of each span's sequence; other values are plain, what is hard are the index keys."""
    torch.manual_seed(p.seed)
    return [
        {
            "k": torch.randn(past + new, p.num_kv_heads, p.head_dim),
            "v": torch.randn(past + new, p.num_kv_heads, p.head_dim),
            "index_k": index_keys(p.keys, past + new, p.index_dim),
        }
        for past, new in p.lengths
    ]


def store(p: Problem, piece: int | None = None) -> Stored:
    """Writes the sequences side by side, so many tokens of each at a time."""
    tokens, piece = sequences(p), piece or p.piece
    totals = [past + new for past, new in p.lengths]
    num_slots = sum(ceil_div(total, p.block_tokens) for total in totals) + 2
    free = torch.randperm(num_slots).tolist()
    slots = [[free.pop() for _ in range(ceil_div(total, p.block_tokens))] for total in totals]
    lanes = LayerLanes.allocate(LaneSpec(p.num_kv_heads, p.head_dim, p.index_dim), num_slots, p.block_tokens, p.dtype)
    for tensor in lanes.tensors():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 255)
    for first in range(0, max(totals), piece):
        lengths = [max(0, min(piece, total - first)) for total in totals]
        live = [s for s, length in enumerate(lengths) if length]
        spans = Spans.pack([Span(first, lengths[s], slots[s]) for s in live], p.block_tokens)
        new = [torch.cat([tokens[s][n][first : first + piece] for s in live]) for n in ("k", "v", "index_k")]
        kernels.write(lanes, spans, *new)
    ends = [Span(past, new, slots[s]) for s, (past, new) in enumerate(p.lengths)]
    return Stored(lanes, slots, tokens, Spans.pack(ends, p.block_tokens))


def parts(p: Problem, stored: Stored) -> Iterator[tuple[slice, Spans]]:
    """The rows of the call in smaller calls: each span alone, and that in two where it has several rows."""
    first = 0
    for (past, new), slots in zip(p.lengths, stored.slots, strict=True):
        cut = 1 + p.seed % new
        for begin, end in ((0, cut), (cut, new)):
            if begin < end:
                spans = Spans.pack([Span(past + begin, end - begin, slots)], p.block_tokens)
                yield slice(first + begin, first + end), spans
        first += new


# ------------------------------------------------------------------------------------------------------ writing


@tried(10, 50, problems())
def test_tokens_are_stored_alike_in_any_pieces(p: Problem) -> None:
    """As the reference stores them; and the sketch of a full block does not tell how the block was filled."""
    p.use()
    pieces = store(p)
    p.use(threads=1)
    whole = store(p, piece=2 * MOST_TOKENS)
    for s, tokens in enumerate(pieces.tokens):
        slots, total = torch.tensor(pieces.slots[s]), len(tokens["k"])
        assert torch.equal(pieces.lanes.flat_k(slots)[:total], tokens["k"].to(p.dtype))
        assert torch.equal(pieces.lanes.flat_v(slots)[:total], tokens["v"].to(p.dtype))
        index = pieces.lanes.index
        assert index is not None
        got = index.keys[slots].flatten(0, 1)[:total]
        assert torch.equal(got.nan_to_num(7.0), tokens["index_k"].to(p.dtype).nan_to_num(7.0))
        full = slots[: total // p.block_tokens]
        for one, other in zip(pieces.lanes.tensors(), whole.lanes.tensors(), strict=True):
            assert torch.equal(one[full].flatten().view(torch.uint8), other[full].flatten().view(torch.uint8))


# ---------------------------------------------------------------------------------------------------- selection


def check_selection(p: Problem) -> None:
    p.use()
    stored = store(p)
    index_q = index_queries(p.queries, stored.spans.rows, p.num_kv_heads, p.index_dim)
    got = kernels.select(index_q, stored.lanes, stored.spans, **p.options)
    for s, tokens in enumerate(stored.tokens):
        first, end, start = stored.spans.bounds(s)
        index_k = tokens["index_k"].to(p.dtype)
        where = {"query_start": start, "block_tokens": p.block_tokens}
        assert torch.equal(got[first:end], reference.select_blocks(index_q[first:end], index_k, **where, **p.options))


@tried(30, 150, problems())
def test_selection_is_the_references(p: Problem) -> None:
    check_selection(p)


@tried(6, 20, long_problems())
def test_selection_over_many_blocks_is_the_references(p: Problem) -> None:
    check_selection(p)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", [(1e18, 1e20), (1e10, 1e28), (1e-10, 1e38)])
def test_scores_beyond_float32_are_ordered(isa: str, sizes: tuple[float, float]) -> None:
    """Scores near 1e39: parts of a sum overflow, sums of others do not."""
    torch.manual_seed(26)
    kernels.use_isa(isa)
    k, q = sizes[0] * torch.randn(640, 32), sizes[1] * torch.randn(200, 2, 32)
    lanes = LayerLanes.allocate(LaneSpec(1, 2, 32), 40, 16, torch.float32)
    nothing = torch.zeros(640, 1, 2)
    kernels.write(lanes, Spans.pack([Span(0, 640, range(40))], 16), nothing, nothing, k)
    got = kernels.select(q, lanes, Spans.pack([Span(440, 200, range(40))], 16), topk=3)
    where = {"query_start": 440, "block_tokens": 16, "topk": 3, "local_blocks": 1, "init_blocks": 0}
    assert torch.equal(got, reference.select_blocks(q, k, **where))


@tried(10, 50, problems(), st.integers(1, 4))
def test_selection_does_not_depend_on_company(p: Problem, threads: int) -> None:
    p.use()
    stored = store(p)
    index_q = index_queries(p.queries, stored.spans.rows, p.num_kv_heads, p.index_dim)
    together = kernels.select(index_q, stored.lanes, stored.spans, **p.options)
    p.use(threads)
    for rows, spans in parts(p, stored):
        assert torch.equal(kernels.select(index_q[rows], stored.lanes, spans, **p.options), together[rows])


# ---------------------------------------------------------------------------------------------------- attention


def any_blocks(p: Problem, spans: Spans) -> torch.Tensor:
    """Random choices (rows, num_kv_heads, topk), not always with the row's own block, never empty."""
    ids = torch.full((spans.rows, p.num_kv_heads, p.topk), -1, dtype=torch.int32)
    for row, position in enumerate(spans.positions.tolist()):
        visible = position // p.block_tokens + 1
        for head in range(p.num_kv_heads):
            count = int(torch.randint(1, min(p.topk, visible) + 1, ()))
            ids[row, head, :count] = torch.randperm(visible)[:count].sort().values
    return ids


def exact_attention(p: Problem, stored: Stored, q: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """In float64, from the stored values."""
    out = []
    for s, slots in enumerate(stored.slots):
        first, end, start = stored.spans.bounds(s)
        total = start + end - first
        k, v = (flat(torch.tensor(slots))[:total].double() for flat in (stored.lanes.flat_k, stored.lanes.flat_v))
        where = {"query_start": start, "scale": p.head_dim**-0.5}
        if ids is None:
            out.append(reference.dense_attention(q[first:end].double(), k, v, **where))
        else:
            where["block_tokens"] = p.block_tokens
            out.append(reference.attend_blocks(q[first:end].double(), k, v, ids[first:end], **where))
    return torch.cat(out)


def attend(p: Problem, stored: Stored, spans: Spans, q: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    return kernels.attend(q, stored.lanes, spans, block_ids=ids, scale=p.head_dim**-0.5)


def in_stages(p: Problem, stored: Stored, q: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """Over three ranges of blocks, one call after another; the last two may be empty."""
    most = max(map(len, stored.slots))
    cuts = [0, *sorted((p.seed % (most + 1), p.seed // 7 % (most + 1))), most]
    carried, out = kernels.Stage.room(q), q
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        stage = kernels.Stage(begin, end, carried, first=i == 0, last=i == 2)
        out = kernels.attend(q, stored.lanes, stored.spans, block_ids=ids, scale=p.head_dim**-0.5, stage=stage)
    return out


@tried(16, 80, problems(), st.booleans(), st.sampled_from([0.1, 1.0, 10.0]))
def test_attention_errs_by_rounding_only(p: Problem, dense: bool, sharpness: float) -> None:
    """A logit may be off by the rounding of its dot product, whose size |q| |k| bounds, and a weighted mean of v by
    twice that; the 8 is for the exponential, the root for the sums over tokens. Over bfloat16 lanes the weights are
    rounded to 8 bits; the queries were before."""
    p.use()
    stored = store(replace(p, keys="plain"))
    q = (sharpness * torch.randn(stored.spans.rows, p.num_kv_heads * p.group, p.head_dim)).to(p.dtype).float()
    ids = None if dense else any_blocks(p, stored.spans)
    error = attend(p, stored, stored.spans, q, ids) - exact_attention(p, stored, q, ids)
    longest = max(past + new for past, new in p.lengths)
    k_size = max(float(t["k"].norm(dim=-1).max()) for t in stored.tokens)
    v_size = max(float(t["v"].abs().max()) for t in stored.tokens)
    logit_size = float(q.norm(dim=-1).max()) * k_size * p.head_dim**-0.5
    allowed = 2.0**-23 * (2 * logit_size + 8 + math.sqrt(longest)) + (2.0**-8 if p.dtype == torch.bfloat16 else 0.0)
    assert float(error.abs().max()) <= allowed * v_size


@tried(10, 50, problems(), st.booleans(), st.integers(1, 4))
def test_a_row_of_attention_has_the_same_bits_in_any_company(p: Problem, dense: bool, threads: int) -> None:
    """In smaller calls, over ranges of blocks in turn, with other threads, and beside a row that is no number."""
    p.use()
    stored = store(replace(p, keys="plain"))
    q = torch.randn(stored.spans.rows, p.num_kv_heads * p.group, p.head_dim)
    ids = None if dense else any_blocks(p, stored.spans)
    together = attend(p, stored, stored.spans, q, ids)
    p.use(threads)
    assert torch.equal(in_stages(p, stored, q, ids), together)
    for rows, spans in parts(p, stored):
        alone = attend(p, stored, spans, q[rows].contiguous(), None if ids is None else ids[rows].contiguous())
        assert torch.equal(alone, together[rows])
    bad = p.seed % len(q)
    q[bad] = torch.nan
    others = torch.arange(len(q)) != bad
    assert torch.equal(attend(p, stored, stored.spans, q, ids)[others], together[others])


@tried(8, 30, problems())
def test_a_sparse_step_is_selection_and_attention(p: Problem) -> None:
    p.use()
    stored = store(replace(p, keys="plain"))
    q = torch.randn(stored.spans.rows, p.num_kv_heads * p.group, p.head_dim)
    index_q = torch.randn(stored.spans.rows, p.num_kv_heads, p.index_dim)
    out, ids = kernels.sparse(q, index_q, stored.lanes, stored.spans, scale=p.head_dim**-0.5, **p.options)
    assert torch.equal(ids, kernels.select(index_q, stored.lanes, stored.spans, **p.options))
    assert torch.equal(out, attend(p, stored, stored.spans, q, ids))


@tried(8, 40, problems(), st.sampled_from([1e4, 1e9, 1e15]), st.booleans())
def test_any_finite_logits_give_a_mean_of_visible_values(p: Problem, size: float, dense: bool) -> None:
    p.use()
    stored = store(replace(p, keys="plain"))
    q = size * torch.randn(stored.spans.rows, p.num_kv_heads * p.group, p.head_dim)
    out = attend(p, stored, stored.spans, q, None if dense else any_blocks(p, stored.spans))
    for s, tokens in enumerate(stored.tokens):
        first, end, _ = stored.spans.bounds(s)
        v = tokens["v"].to(p.dtype).float().repeat_interleave(p.group, dim=1)
        slack = (2.0**-7 if p.dtype == torch.bfloat16 else 2.0**-20) * float(v.abs().max())
        assert bool((out[first:end] <= v.amax(dim=0) + slack).all())
        assert bool((out[first:end] >= v.amin(dim=0) - slack).all())


# -------------------------------------------------------------------------------------------- the small kernels


@settings(max_examples=60, deadline=None)
@given(
    isa=st.sampled_from(ISAS),
    threads=st.integers(1, 4),
    rows=st.integers(1, 40),
    dim=st.one_of(st.integers(1, 200), st.sampled_from([576, 1000, 6144])),
    size=st.sampled_from([1e-6, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_norms_err_by_rounding_only_and_row_by_row(isa, threads, rows, dim, size, seed) -> None:
    """A norm's factor carries the rounding of a sum of squares."""
    torch.manual_seed(seed)
    kernels.use_isa(isa)
    kernels.set_threads(threads)
    x, weight = size * torch.randn(rows, dim), torch.randn(dim)
    d = x.double()
    exact = d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + 1e-12) * weight.double()
    row = slice(seed % rows, seed % rows + 1)
    together = kernels.rms_norm(x, weight, 1e-12)
    assert bool(((together.double() - exact).abs() <= 1e-5 * exact.abs() + 1e-30).all())
    assert torch.equal(kernels.rms_norm(x[row], weight, 1e-12), together[row])

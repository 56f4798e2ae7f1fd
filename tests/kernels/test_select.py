"""Selection from the sketch is exact on every input, and says what it read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.attention.impl import reference
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError
from support.instruction_sets import supported

ISAS = supported()


@pytest.fixture(params=ISAS, autouse=True)
def instruction_set(request):
    kernels.use_isa(request.param)
    yield request.param
    kernels.use_isa(ISAS[-1])


def lanes_of(index_k: torch.Tensor, block_tokens: int, dtype: torch.dtype = torch.float32) -> LayerLanes:
    """Blocks holding the index keys (total_k, index_dim), in slots that are not in order."""
    total_k, index_dim = index_k.shape
    num_blocks = -(-total_k // block_tokens)
    lanes = LayerLanes.allocate(LaneSpec(1, 2, index_dim), num_blocks + 3, block_tokens, dtype)
    nothing = torch.zeros(total_k, 1, 2)
    kernels.write(lanes, Spans.pack([Span(0, total_k, slots_for(num_blocks))], block_tokens), nothing, nothing, index_k)
    return lanes


def slots_for(num_blocks: int) -> list[int]:
    return [(i * 7 + 3) % (num_blocks + 3) if (num_blocks + 3) % 7 else num_blocks + 2 - i for i in range(num_blocks)]


def both(index_q, index_k, *, block_tokens, dtype=torch.float32, **options):
    """(kernel's ids, reference's ids, statistics) for queries at the end of the keys."""
    rows, total_k = index_q.shape[0], index_k.shape[0]
    lanes = lanes_of(index_k, block_tokens, dtype)
    spans = Spans.pack([Span(total_k - rows, rows, slots_for(-(-total_k // block_tokens)))], block_tokens)
    got, stats = kernels.select_with_stats(index_q, lanes, spans, **options)
    options = {"local_blocks": 1, "init_blocks": 0, **options}
    wanted = reference.select_blocks(
        index_q, index_k.to(dtype), query_start=total_k - rows, block_tokens=block_tokens, **options
    )
    return got, wanted, stats


@settings(max_examples=60, deadline=None)
@given(
    total_k=st.integers(1, 1500),
    rows=st.integers(1, 40),
    heads=st.integers(1, 5),
    index_dim=st.integers(1, 200),
    block_tokens=st.sampled_from([16, 48, 64, 128, 256]),
    topk=st.integers(1, 20),
    bf16=st.booleans(),
    kind=st.sampled_from(["plain", "shifted", "ties", "clusters", "near ties"]),
    seed=st.integers(0, 2**31),
)
def test_the_same_blocks_as_the_reference(total_k, rows, heads, index_dim, block_tokens, topk, bf16, kind, seed):
    torch.manual_seed(seed)
    rows = min(rows, total_k)
    q, k = torch.randn(rows, heads, index_dim), torch.randn(total_k, index_dim)
    if kind == "shifted":
        k = k + 100 * torch.randn(1, index_dim)
    elif kind == "ties":
        q, k = q.round(), k.round()
    elif kind == "clusters":  # two far-apart clusters of nearly equal keys: the worst case of a common centre
        k = torch.where(torch.rand(total_k, 1) < 0.5, 50.0, -50.0) * torch.randn(1, index_dim) + 1e-4 * k
    elif kind == "near ties":
        k = torch.randn(1, index_dim) * (1 + 2**-8 * torch.randint(0, 2, (total_k, 1)))
    dtype = torch.bfloat16 if bf16 else torch.float32
    got, wanted, _ = both(q, k, block_tokens=block_tokens, dtype=dtype, topk=topk)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("local_blocks", [1, 2, 3])
@pytest.mark.parametrize("init_blocks", [0, 1, 2])
def test_first_and_last_blocks_always_win(local_blocks, init_blocks):
    torch.manual_seed(0)
    got, wanted, _ = both(
        torch.randn(70, 2, 24), torch.randn(400, 24), block_tokens=16, topk=6,
        local_blocks=local_blocks, init_blocks=init_blocks,
    )  # fmt: skip
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_keys_that_are_no_numbers_lose_or_win_as_in_the_reference(bad):
    torch.manual_seed(1)
    k = torch.randn(640, 32)
    k[5, 3] = k[100] = k[333, 0] = bad
    got, wanted, _ = both(torch.randn(20, 2, 32), k, block_tokens=32, topk=4)
    assert torch.equal(got, wanted)


def test_a_query_that_is_no_number_still_selects():
    torch.manual_seed(1)
    q = torch.randn(3, 2, 32)
    q[1, 0, 7] = float("nan")
    q[2, 1, 7] = float("inf")
    got, wanted, _ = both(q, torch.randn(640, 32), block_tokens=32, topk=4)
    assert torch.equal(got, wanted)


def test_equal_keys_go_to_the_lowest_blocks():
    got, wanted, _ = both(torch.randn(1, 1, 16), torch.ones(320, 16), block_tokens=32, topk=4)
    assert got[0, 0].tolist() == [0, 1, 2, 9]
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("total_k", [2000, 98_304 + 2000])
def test_for_a_query_of_zeros_no_finite_key_is_scored(total_k):
    """All blocks score alike then, which is known without a look at their keys."""
    torch.manual_seed(3)
    q, k = torch.zeros(2, 2, 32), torch.randn(total_k, 32)
    k[70, 3], k[130, 5] = torch.nan, torch.inf
    got, wanted, stats = both(q, k, block_tokens=32, topk=6)
    assert torch.equal(got, wanted)
    assert stats.keys_scored_exactly <= 2 * q.shape[0] * q.shape[1] * 32


def test_what_was_read_is_told():
    torch.manual_seed(0)
    k = torch.randn(64, 1, 128).expand(-1, 128, -1).reshape(-1, 128) + torch.randn(64 * 128, 128)
    got, wanted, stats = both(torch.randn(1, 4, 128), k, block_tokens=128, topk=8)
    assert torch.equal(got, wanted)
    assert stats.scanned_blocks == 63  # all but the local one
    assert stats.scanned_bytes == 63 * (128 * 128 + 128 + 256 + 32)
    assert 0 < stats.blocks_looked_at_again < 4 * 63
    assert stats.keys_scored_exactly < 63 * 128 / 10


LONG = 100_000
"""Tokens from which few queries are served by half codes first."""


def long_keys(kind: str, total_k: int, index_dim: int, block_tokens: int) -> torch.Tensor:
    k = torch.randn(total_k, index_dim)
    if kind == "shifted":
        return k + 100 * torch.randn(1, index_dim)
    if kind == "centred":  # as trained keys: a block's keys resemble each other
        return (
            0.7 * k
            + 0.7 * torch.randn(-(-total_k // block_tokens), index_dim).repeat_interleave(block_tokens, 0)[:total_k]
        )
    if kind == "ties":
        return k.round()
    if kind == "near ties":
        return torch.randn(1, index_dim) * (1 + 2**-8 * torch.randint(0, 2, (total_k, 1)))
    if kind == "uneven":  # keys of very different lengths, and some that are zero
        return k * torch.randint(-9, 9, (total_k, 1)).float().exp2() * (torch.rand(total_k, 1) < 0.9)
    if kind == "not finite":
        k[torch.randint(0, total_k, (50,)), torch.randint(0, index_dim, (50,))] = float("inf")
        k[torch.randint(0, total_k, (50,)), torch.randint(0, index_dim, (50,))] = float("nan")
    return k


SIZES = [(128, 128, 1, 4, 16), (20, 48, 2, 3, 5), (64, 16, 1, 5, 40)]
KINDS = ["random", "shifted", "centred", "ties", "near ties", "uneven", "not finite"]
DTYPES = [torch.float32, torch.bfloat16]
CASES = [(sizes, kind, dtype) for sizes in SIZES for kind in KINDS for dtype in DTYPES]
# In every run each kind with one of the sizes and one type; all of the others in the long one.
EVERY_RUN = [(SIZES[i % 3], kind, DTYPES[i % 2]) for i, kind in enumerate(KINDS)]


@pytest.mark.parametrize(
    ("sizes", "kind", "dtype"),
    [case if case in EVERY_RUN else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_half_codes_choose_the_same_blocks(sizes, kind, dtype):
    index_dim, block_tokens, rows, heads, topk = sizes
    torch.manual_seed(3)
    q, k = torch.randn(rows, heads, index_dim), long_keys(kind, LONG, index_dim, block_tokens)
    got, wanted, stats = both(q, k, block_tokens=block_tokens, dtype=dtype, topk=topk, init_blocks=1, local_blocks=2)
    assert torch.equal(got, wanted)
    assert stats.scanned_blocks >= LONG // block_tokens - 2


def test_half_codes_are_half_of_what_is_read():
    torch.manual_seed(0)
    k = long_keys("centred", 128 * 1024, 128, 128)
    got, wanted, stats = both(torch.randn(1, 4, 128), k, block_tokens=128, topk=8)
    assert torch.equal(got, wanted)
    assert stats.scanned_bytes == 1023 * (64 * 128 + 128 + 256 + 32)
    assert 0 < stats.keys_scored_exactly < 4 * len(k) / 20


def test_where_half_codes_prune_nothing_whole_codes_are_read():
    k = torch.randn(1, 32).expand(LONG, -1) + 1e-3 * torch.randn(LONG, 32)
    k[::2] *= -1  # no block centre helps, and every second key may win
    q = k[:1, None] + 0.0
    got, wanted, stats = both(q, k, block_tokens=16, topk=4)
    assert torch.equal(got, wanted)
    assert stats.scanned_bytes > LONG * 32  # half codes first, then whole ones


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30, 0.0])
def test_a_query_without_bounds_still_selects_among_many_blocks(bad):
    torch.manual_seed(1)
    q = torch.randn(1, 2, 32)
    q[0, 1] = bad
    got, wanted, _ = both(q, torch.randn(LONG, 32), block_tokens=32, topk=4)
    assert torch.equal(got, wanted)


def test_several_sequences_of_any_length_together():
    torch.manual_seed(5)
    lengths, block_tokens = [LONG + 7, 300, LONG + 5_000, 17], 64
    keys = [torch.randn(n, 40) for n in lengths]
    blocks = [-(-n // block_tokens) for n in lengths]
    lanes = LayerLanes.allocate(LaneSpec(1, 2, 40), sum(blocks), block_tokens, torch.float32)
    spans, first = [], 0
    for n, k, count in zip(lengths, keys, blocks, strict=True):
        slots = range(first, first + count)
        kernels.write(
            lanes, Spans.pack([Span(0, n, slots)], block_tokens), torch.zeros(n, 1, 2), torch.zeros(n, 1, 2), k
        )
        spans.append(Span(n - 1, 1, slots))
        first += count
    q = torch.randn(4, 3, 40)
    got = kernels.select(q, lanes, Spans.pack(spans, block_tokens), topk=9)
    for i, (n, k) in enumerate(zip(lengths, keys, strict=True)):
        wanted = reference.select_blocks(
            q[i : i + 1], k, query_start=n - 1, block_tokens=block_tokens, topk=9, local_blocks=1, init_blocks=0
        )
        assert torch.equal(got[i : i + 1], wanted)


def test_nothing_is_read_where_every_block_is_chosen():
    _, _, stats = both(torch.randn(2, 1, 16), torch.randn(64, 16), block_tokens=16, topk=4)
    assert stats.scanned_blocks == stats.blocks_looked_at_again == 0


@pytest.mark.parametrize("block_tokens", [272, 512, 1024])
def test_blocks_may_be_large(block_tokens):
    torch.manual_seed(2)
    k = torch.randn(1, 40) * (1 + 2**-8 * torch.randint(0, 2, (9 * block_tokens + 5, 1)))
    got, wanted, stats = both(torch.randn(9, 2, 40), k, block_tokens=block_tokens, topk=4)
    assert torch.equal(got, wanted)
    assert stats.blocks_looked_at_again > 0  # its scores of single tokens were asked for


def test_a_query_without_heads_is_refused():
    lanes = lanes_of(torch.randn(640, 16), 32)
    spans = Spans.pack([Span(630, 10, slots_for(20))], 32)
    with pytest.raises(ArgumentError, match="index_q has shape"):
        kernels.select(torch.randn(10, 0, 16), lanes, spans, topk=4)

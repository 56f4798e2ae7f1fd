"""`freehold bench backward`: gradients through sparse attention, beside torch's autograd under a dense mask."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold.attention import attend_blocks, select_blocks
from freehold.bench.harness import Comparison, Samples, check_rounds, fastest, round_figures, time_calls
from freehold.bench.machine import peak_memory, this_machine
from freehold.bench.report import Report
from freehold.core.errors import FreeholdError
from freehold.kernels import using_threads

Say = Callable[[str], None]
Run = Callable[[], tuple[Tensor, ...]]

_ONCE = 16384
"""From so many tokens on torch computes one group of heads, once: the others take as long."""
_TRIAL = 2048
"""Tokens with which torch's faster type is found for such lengths."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
_COLUMNS = ("tokens", "ours s", "torch s", "ratio", "peak memory", "torch's way")
_NOTES = (
    "forwards and backwards, for q, k and v; blocks chosen beforehand; ratio: torch's time / ours",
    "torch: scaled_dot_product_attention with the chosen blocks as a mask, the groups of heads as its batch",
    f"from {_ONCE:,} tokens on torch is measured once, on one group of heads, and its time taken for each of them;"
    f" its type is the one that is faster with {_TRIAL:,}",
    "peak memory: of the whole process, torch's library and the inputs among it, before any rival ran; longest first",
)


@dataclass(frozen=True, slots=True)
class BackwardSettings:
    """tokens: lengths. The shape is M3's unless told otherwise. dtype: of q, k and v on our side; torch has both."""

    tokens: tuple[int, ...]
    threads: int
    rounds: int
    heads: int = 64
    kv_heads: int = 4
    head_dim: int = 128
    block_tokens: int = 128
    topk: int = 16
    dtype: torch.dtype = torch.bfloat16

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True, slots=True)
class Row:
    """One length. rival_groups: of how many groups torch's time was taken; peak_nbytes: None after a rival ran."""

    tokens: int
    rival: str
    seconds: Comparison
    rival_groups: int
    peak_nbytes: int | None

    def cells(self) -> list[str]:
        """For the table."""
        peak = "-" if self.peak_nbytes is None else f"{self.peak_nbytes / 2**30:.2f} GiB"
        ours, theirs = self.seconds.ours.median, self.seconds.theirs.median
        return [
            f"{self.tokens:,}", round_figures(ours), round_figures(theirs), f"{theirs / ours:.1f}", peak, self.rival,
        ]  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "tokens": self.tokens,
            "rival": self.rival,
            "seconds": self.seconds.as_json(),
            "speed_ratio": 1 / self.seconds.ratio,
            "rival_groups": self.rival_groups,
            "peak_bytes": self.peak_nbytes,
        }


class _Case:
    """Inputs of one length and both ways to their gradients."""

    def __init__(self, s: BackwardSettings, tokens: int) -> None:
        self.s, self.tokens = s, tokens
        make = torch.Generator().manual_seed(tokens)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make).to(s.dtype)

        self.q, self.k, self.v = (draw(tokens, n, s.head_dim) for n in (s.heads, s.kv_heads, s.kv_heads))
        self.grad = torch.randn(tokens, s.heads, s.head_dim, generator=make)
        self.block_ids = select_blocks(
            draw(tokens, s.kv_heads, 64), draw(tokens, 64), query_start=0, block_tokens=s.block_tokens, topk=s.topk
        )

    def ours(self) -> tuple[Tensor, ...]:
        """dq, dk, dv."""
        q, k, v = leaves = [t.detach().requires_grad_() for t in (self.q, self.k, self.v)]
        out = attend_blocks(q, k, v, self.block_ids, query_start=0, block_tokens=self.s.block_tokens)
        out.backward(self.grad)  # type: ignore[no-untyped-call]
        return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)

    def rival(self, dtype: torch.dtype, groups: int) -> Run:
        """The same of the first `groups` groups in torch; the mask and the types are made beforehand."""
        s, t = self.s, self.tokens
        per = s.heads // s.kv_heads
        ids = self.block_ids[:, :groups].long()
        num = -(-t // s.block_tokens)
        chosen = torch.zeros(t, groups, num + 1, dtype=torch.bool).scatter_(2, ids % (num + 1), True)[..., :num]
        mask = torch.empty(groups, 1, t, t, dtype=torch.bool)
        for g in range(groups):
            mask[g, 0] = torch.repeat_interleave(chosen[:, g], s.block_tokens, dim=1)[:, :t]
            mask[g, 0].tril_()
        q = self.q[:, : groups * per].to(dtype).view(t, groups, per, -1).permute(1, 2, 0, 3).contiguous()
        k, v = (x[:, :groups].to(dtype).permute(1, 0, 2)[:, None].contiguous() for x in (self.k, self.v))
        grad = self.grad[:, : groups * per].to(dtype).view(t, groups, per, -1).permute(1, 2, 0, 3).contiguous()

        def run() -> tuple[Tensor, ...]:
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            keys, values = (x.expand(-1, per, -1, -1) for x in leaves[1:])
            out = F.scaled_dot_product_attention(leaves[0], keys, values, attn_mask=mask)
            out.backward(grad)  # type: ignore[no-untyped-call]
            found = [leaf.grad for leaf in leaves if leaf.grad is not None]
            dq = found[0].permute(2, 0, 1, 3).reshape(t, groups * per, -1)
            return dq, *(x[:, 0].permute(1, 0, 2) for x in found[1:])

        return run


def run(settings: BackwardSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage. Raises FreeholdError if torch's gradients are not ours."""
    machine = this_machine()
    rows: list[Row] = []
    with using_threads(settings.threads):
        for tokens in sorted(settings.tokens, reverse=True):
            say(f"{tokens:,} tokens")
            rows.append(_measure(settings, tokens, first=not rows))
    rows.reverse()
    return Report(
        suite="backward",
        title=f"gradients of sparse attention and of torch's under a mask, medians of {settings.rounds} rounds",
        head=(*machine.lines(), _shape(settings)),
        columns=_COLUMNS,
        rows=[row.cells() for row in rows],
        notes=(*_NOTES, *check_rounds(settings.rounds), *machine.warnings()),
        data={
            "machine": machine.as_json(),
            "settings": settings.as_json(),
            "rows": [row.as_json() for row in rows],
        },
    )


def _shape(s: BackwardSettings) -> str:
    dtype = str(s.dtype).removeprefix("torch.")
    heads = f"{s.heads}/{s.kv_heads} heads of {s.head_dim}"
    return f"{heads}, {s.topk} blocks of {s.block_tokens}, {dtype}, {s.threads} threads"


def _measure(s: BackwardSettings, tokens: int, *, first: bool) -> Row:
    case = _Case(s, tokens)
    ours = case.ours()
    peak = peak_memory() if first else None
    groups = 1 if tokens >= _ONCE else s.kv_heads
    ways = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if tokens >= _ONCE:
        # Each takes minutes a group, and which is faster depends on the machine: without BF16 arithmetic it is float32.
        short = _Case(s, min(tokens, _TRIAL))
        faster = fastest({name: short.rival(dtype, groups) for name, dtype in ways.items()})
        ways = {faster: ways[faster]}
    rivals = {name: case.rival(dtype, groups) for name, dtype in ways.items()}
    name = fastest(rivals)
    if tokens >= _ONCE:
        begin = time.perf_counter()
        theirs = rivals[name]()
        seconds = time.perf_counter() - begin
        _check(case, ours, theirs, ways[name], groups)
        mine = time_calls({"ours": case.ours}, rounds=s.rounds)["ours"]
        once = Samples((seconds * s.kv_heads / groups,) * len(mine.values))
        return Row(tokens, name, Comparison(mine, once), groups, peak)
    for way, rival in rivals.items():
        _check(case, ours, rival(), ways[way], groups)
    both = time_calls({"ours": case.ours, "theirs": rivals[name]}, rounds=s.rounds)
    return Row(tokens, name, Comparison(both["ours"], both["theirs"]), groups, peak)


def _check(case: _Case, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], dtype: torch.dtype, groups: int) -> None:
    """Raises FreeholdError if torch computes something else: its time would then say nothing."""
    s = case.s
    limit = max(_TOLERANCE[dtype], _TOLERANCE[s.dtype])
    for name, mine, other in zip("qkv", ours, theirs, strict=True):
        part = mine[:, : other.shape[1]].float()
        error = float((part - other.float()).abs().max() / part.abs().max())
        if not error <= limit:
            raise FreeholdError(f"{case.tokens} tokens: torch's gradient of {name} differs from ours by {error:.1e}")

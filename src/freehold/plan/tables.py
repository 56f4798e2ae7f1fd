"""A plan as tables for people."""

from __future__ import annotations

from freehold.bench.report import Report
from freehold.plan.part import PARTS
from freehold.plan.plan import Plan, Row, start_line
from freehold.plan.support import does_not_load
from freehold.plan.verdict import gb
from freehold.plan.weights import FORMAT_NOTE

_UNKNOWN = "?"
_COLUMNS = (
    *("way", "context", "users", "needs GB", "fits"),
    *("decode tok/s", "bound by", "read tok/s", "bound by", "here"),
)


def reports(plan: Plan) -> tuple[Report, ...]:
    """The tables, in the order in which they are read."""
    return _parts(plan), _lanes(plan), _ways(plan)


def _parts(plan: Plan) -> Report:
    subject, memory = plan.subject, plan.weights.memory
    rows = [
        [
            part,
            f"{subject.parameters[part]:,}",
            f"{subject.active[part]:,}",
            gb(subject.nbytes[part]),
            gb(memory[part]) if part in memory else "-",
        ]
        for part in PARTS
        if part in subject.parameters
    ]
    rows.append(
        [
            "total",
            f"{sum(subject.parameters.values()):,}",
            f"{sum(subject.active.values()):,}",
            gb(sum(subject.nbytes.values())),
            gb(plan.weights.total),
        ]
    )
    origin = "headers of its files" if subject.origin == "files" else "its configuration alone"
    return Report(
        suite="plan",
        title=f"weights ({plan.weights.format})",
        head=(f"{subject.path}: {len(subject.tensors):,} tensors, from {origin}",),
        columns=("part", "parameters", "used by a token", "stored GB", "in RAM GB"),
        rows=rows,
        notes=() if plan.weights.format in ("as-stored", "bf16") else (FORMAT_NOTE,),
    )


def _lanes(plan: Plan) -> Report:
    cache = plan.cache
    dense, sparse, per = cache.dense, cache.sparse, cache.block_tokens
    lanes = [("K", dense.k, sparse.k), ("V", dense.v, sparse.v)]
    if sparse.layers:
        lanes += [("index keys", 0, sparse.index_keys), ("sketch", 0, sparse.sketch)]
    lanes.append(("all", dense.total, sparse.total))
    rows = [[name, _bytes(a / per), _bytes(b / per), _bytes((a + b) / per)] for name, a, b in lanes]
    rows.append(["in the block store", "", "", _bytes(cache.stored / per)])
    return Report(
        suite="plan",
        title=f"cache, bytes a token ({cache.kv_dtype}, blocks of {per})",
        head=(),
        columns=("lane", f"{dense.layers} dense layers", f"{sparse.layers} sparse layers", "together"),
        rows=rows,
    )


def _bytes(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _ways(plan: Plan) -> Report:
    unknown = plan.rates is None
    note = (
        f"rates are unknown ({plan.about_rates}): add --calibrate"
        if unknown
        else "decode, read: at most; no engine is faster than the memory, products and disk that it needs"
    )
    return Report(
        suite="plan",
        title=f"what fits into {gb(plan.ram)} GB",
        head=(),
        columns=_COLUMNS,
        rows=[_cells(row) for row in plan.rows],
        notes=(*does_not_load(plan.subject), plan.verdicts[-1], note, *_about(plan)),
    )  # fmt: skip


def _cells(row: Row) -> list[str]:
    way, pace = row.way, row.pace
    fits = "yes" if way.fits else f"{gb(way.missing)} GB missing"
    cells = [way.name, f"{row.task.context:,}", f"{row.task.users:,}", gb(way.need), fits]
    if pace is None:
        cells += [_UNKNOWN if way.fits else "-"] * 4
    else:
        decode = _rate(pace.decode)
        if _rate(pace.slow_decode) != decode:
            decode = f"{_rate(pace.slow_decode)} to {decode}"
        cells += [decode, pace.decode_bound, _rate(pace.prefill), pace.prefill_bound]
    return [*cells, "no" if row.why_not else "yes"]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _about(plan: Plan) -> list[str]:
    """What a reader has to know besides."""
    found = []
    if plan.rates is not None:
        r = plan.rates
        found.append(
            f"rates from reads of {r.read / 1e9:.1f} GB/s, products of {r.float32 / 1e9:,.0f} (float32) and "
            f"{r.bfloat16 / 1e9:,.0f} GFLOP/s (bfloat16), disk {r.disk / 1e9:.2f} GB/s; {plan.about_rates}"
        )
        found += plan.calibration.warnings if plan.calibration is not None else ()
    if any(row.way.streamed for row in plan.rows):
        found.append("experts from disk: what memory is left holds experts; each token is taken to draw its own evenly")
    if any(row.way.paged for row in plan.rows):
        found.append("K/V paged: from a rate at which every chosen block is read to one at which none is")
    reasons = dict.fromkeys(reason for row in plan.rows for reason in row.why_not)
    said = does_not_load(plan.subject)
    found += [f"here: no, because in this version {reason}" for reason in reasons if reason not in said]
    runs = [row for row in plan.rows if row.way.fits and not row.why_not and plan.subject.origin == "files"]
    if runs:
        best = max(runs, key=lambda row: row.task.context)  # of one context the first, which is the fastest
        found.append(f"to serve {best.task.context:,} tokens: {start_line(plan, best)}")
    return found

"""Saying whether it fits: in words, with the number that is missing and the ways out."""

from __future__ import annotations

from collections.abc import Mapping

from freehold.core.axes import ceil_div
from freehold.plan.fit import RESERVED_NBYTES, Fit, Task, Way
from freehold.plan.weights import Format


def gb(nbytes: float) -> str:
    """Bytes as GB (10^9), with as many decimals as are of use."""
    return f"{nbytes / 1e9:,.1f}" if nbytes >= 1e10 else f"{nbytes / 1e9:,.3f}"


def _least_gb(nbytes: int) -> str:
    """As `gb`, rounded up: who gives that much memory has enough."""
    step = 10**8 if nbytes >= 10**10 else 10**6
    return gb(ceil_div(nbytes, step) * step)


def verdict(fits: Mapping[Format, Fit], chosen: Format, task: Task) -> str:
    """Whether the task fits; if not in the fastest way, why, and what would help.

    fits: the model in every format; what is said is about the chosen one.
    """
    fit = fits[chosen]
    ways, best = fit.ways(task), fit.best(task)
    asked = f"{task.context:,} tokens x {_users(task.users)}"
    if best is None:
        return f"{asked}: does not fit, because {_because(ways[-1])}. {_ways_out(fits, chosen, task, ways[-1])}"
    context, users = fit.most_context(task, best), fit.most_users(task, best)
    said = (
        f"{asked}: fits with {best.name}, which takes {gb(best.need)} of {gb(task.ram)} GB; up to {context:,} tokens "
        f"each would fit, or {_users(users)}"
    )
    if best is ways[0] or ways[0].fits:
        return f"{said}."
    return f"{said}. It does not fit with {ways[0].name}, because {_because(ways[0])}. " + _ways_out(
        fits, chosen, task, ways[0]
    )


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count:,} users"


def _because(way: Way) -> str:
    paging = f", {gb(way.frames)} GB for pages of K and V" if way.paged else ""
    return (
        f"weights take {gb(way.weights)} GB{' without most experts' if way.streamed else ''}, the cache "
        f"{gb(way.cache)} GB{paging} and all else {gb(RESERVED_NBYTES)} GB, of {gb(way.ram)} GB: {gb(way.missing)} GB "
        "are missing"
    )


def _ways_out(fits: Mapping[Format, Fit], chosen: Format, task: Task, way: Way) -> str:
    """What would make this way fit, or, if it is the leanest, any."""
    fit, found = fits[chosen], []
    leanest = fit.ways(task)[-1]
    for other, smaller in fits.items():
        if smaller.weights.total >= fit.weights.total:
            continue
        candidates = [
            w for w in smaller.ways(task) if way == leanest or (w.streamed, w.paged) == (way.streamed, way.paged)
        ]
        fitting = next((w for w in candidates if w.fits), None)
        if fitting is not None:
            found.append(f"smaller weights: with --weights {other}, {fitting.name} takes {gb(fitting.need)} GB")
            break
    if way.streamed is False and leanest.streamed:
        found.append(f"experts from disk: {_least_gb(leanest.need)} GB at the least")
    context, users = fit.most_context(task, way), fit.most_users(task, way)
    if 0 < context < task.context:
        found.append(f"a shorter context: --context {context}")
    if 0 < users < task.users:
        found.append(f"fewer users: --users {users}")
    found.append(f"more memory: {_least_gb(way.need)} GB at the least")
    return f"Ways out: {'; '.join(found)}."

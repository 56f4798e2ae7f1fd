"""`make_plan`: everything that is known about a model on a machine before it is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from freehold.core.axes import DEFAULT_BLOCK_TOKENS
from freehold.core.config import Activations, EngineConfig, KvDtype
from freehold.core.errors import ArgumentError
from freehold.loading.quoting import quoted
from freehold.model.index_branches import AUTO
from freehold.plan.calibration import Calibration
from freehold.plan.fit import Fit, Task, Way
from freehold.plan.host import this_host
from freehold.plan.lanes import CacheCost, LaneBytes, cache_cost
from freehold.plan.roofline import Bound, Rates, Roofline
from freehold.plan.subject import Subject
from freehold.plan.support import why_not
from freehold.plan.verdict import verdict
from freehold.plan.weights import FORMATS, Format, WeightCost, weight_cost

SCHEMA = 1
"""Version of the JSON object; it rises when a key changes its meaning or goes away."""

_MOST = 2**63 - 1
_LADDER = (8192, 32768, 131072)


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """context: tokens of each session, prompt and answer; None: a few lengths, up to the model's own. users: sessions
    at the same time. ram: bytes of memory; None: this machine's. weights: the type they are computed from.
    kv_dtype: how K, V and index keys are stored. activations: "int8" where products with codes multiply integers.
    disk_bandwidth: bytes a second; None: as calibrated."""

    context: int | None = None
    users: int = 1
    ram: int | None = None
    weights: Format = "as-stored"
    kv_dtype: KvDtype = EngineConfig().kv_dtype
    activations: Activations = EngineConfig().activations
    disk_bandwidth: int | None = None

    def __post_init__(self) -> None:
        for name in ("context", "users", "ram", "disk_bandwidth"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                bound = "at least 1" if value < 1 else f"at most {_MOST}"
                raise ArgumentError(f"{name} is {quoted(value)}; it must be {bound}")
        if self.weights not in FORMATS:
            raise ArgumentError(f"weights is {self.weights!r}; known are {', '.join(FORMATS)}")


@dataclass(frozen=True, slots=True)
class Pace:
    """Upper bounds. decode: tokens a second of all users together; slow_decode: if no chosen block of K and V were in
    memory (the same without paging). prefill: tokens a second of one prompt of the whole context."""

    decode: float
    slow_decode: float
    decode_bound: Bound
    prefill: float
    prefill_bound: Bound


@dataclass(frozen=True, slots=True)
class Row:
    """One context in one way. pace: None if it does not fit or rates are unknown. why_not: why this version does not do
    it, though it may fit."""

    task: Task
    way: Way
    pace: Pace | None
    why_not: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """See `make_plan`. rates: None if they are unknown; about_rates says where they come from, or why they are."""

    subject: Subject
    settings: PlanSettings
    ram: int
    weights: WeightCost
    cache: CacheCost
    rates: Rates | None
    about_rates: str
    calibration: Calibration | None
    rows: tuple[Row, ...]
    verdicts: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """One object: sizes in bytes, rates a second."""
        subject, cache = self.subject, self.cache
        return {
            "schema": SCHEMA,
            "model": {
                "path": str(subject.path),
                "origin": subject.origin,
                "family": subject.family,
                "context_length": subject.config.context_length,
                "num_tensors": len(subject.tensors),
                "parameters": {**subject.parameters, "total": sum(subject.parameters.values())},
                "active_parameters": {**subject.active, "total": sum(subject.active.values())},
                "stored_bytes": {**subject.nbytes, "total": sum(subject.nbytes.values())},
                "refusals": list(subject.refusals),
            },
            "weights": {
                "format": self.weights.format,
                "memory_bytes": {**self.weights.memory, "total": self.weights.total},
                "expert_memory_bytes": self.weights.expert,
                "expert_stored_bytes": self.weights.stored_expert,
            },
            "cache": {
                "kv_dtype": cache.kv_dtype,
                "block_tokens": cache.block_tokens,
                "block_bytes": cache.block,
                "block_stored_bytes": cache.stored,
                "bytes_per_token": cache.block / cache.block_tokens,
                "lanes": {"dense": _lanes(cache.dense), "sparse": _lanes(cache.sparse)},
            },
            "ram_bytes": self.ram,
            "rates": None if self.rates is None else asdict(self.rates),
            "about_rates": self.about_rates,
            "calibration": None if self.calibration is None else self.calibration.as_json(),
            "ways": [_row_json(row) for row in self.rows],
            "verdicts": list(self.verdicts),
        }


def make_plan(
    subject: Subject, settings: PlanSettings, calibration: Calibration | None = None, about: str = "not calibrated"
) -> Plan:
    """What the model needs and how fast it may be. calibration: of this machine; None: rates stay unknown, and `about`
    says why. Raises ArgumentError for a context beyond the model's."""
    ram = this_host().usable_memory if settings.ram is None else settings.ram
    cache = cache_cost(subject.lane_specs, _block_tokens(subject), settings.kv_dtype)
    fits = {weights: Fit(subject, weight_cost(subject, weights), cache) for weights in FORMATS}
    fit, rates = fits[settings.weights], _rates(calibration, settings)
    tasks = [Task(context, settings.users, ram) for context in _contexts(subject, settings)]
    rows = []
    for task in tasks:
        for way in fit.ways(task):
            pace = _pace(fit, task, way, rates, settings.activations) if rates is not None and way.fits else None
            rows.append(Row(task, way, pace, why_not(subject, settings.weights)))
    return Plan(
        subject=subject,
        settings=settings,
        ram=ram,
        weights=fit.weights,
        cache=cache,
        rates=rates,
        about_rates=about,
        calibration=calibration,
        rows=tuple(rows),
        verdicts=tuple(verdict(fits, settings.weights, task) for task in tasks),
    )


def _block_tokens(subject: Subject) -> int:
    return DEFAULT_BLOCK_TOKENS if subject.index is None else subject.index.block_tokens


def _contexts(subject: Subject, settings: PlanSettings) -> tuple[int, ...]:
    most = subject.config.context_length
    if settings.context is None:
        return (*(context for context in _LADDER if context < most), most)
    if settings.context > most:
        raise ArgumentError(f"context is {settings.context}; the model was made for {most} tokens")
    return (settings.context,)


def _rates(calibration: Calibration | None, settings: PlanSettings) -> Rates | None:
    if calibration is None:
        return None
    disk = settings.disk_bandwidth or calibration.disk_read
    return Rates(calibration.read, calibration.float32, calibration.bfloat16, float(disk))


def _pace(fit: Fit, task: Task, way: Way, rates: Rates, activations: Activations) -> Pace:
    # Codes take 4 to 13 bits a weight with their scales, floats at least 16.
    coded = fit.weights.total < 1.7 * sum(fit.subject.parameters.values())
    integers = activations == "int8" and coded
    roofline = Roofline(fit.subject, fit.weights, fit.cache, way.cached_experts, integer_weights=integers)
    seconds, bound = roofline.decode(task.users, task.context).seconds(rates)
    slow = seconds
    blocks = task.users * fit.cache.blocks(task.context)
    if way.paged and way.frames_given < blocks * fit.cache.frame:
        reading = replace(roofline, paged_reads=True)
        slow, _ = reading.decode(task.users, task.context).seconds(rates)
    prompt, prompt_bound = roofline.prefill_seconds(task.context, rates)
    return Pace(task.users / seconds, task.users / slow, bound, task.context / prompt, prompt_bound)


def _lanes(lanes: LaneBytes) -> dict[str, int]:
    return {
        "layers": lanes.layers,
        "k_block_bytes": lanes.k,
        "v_block_bytes": lanes.v,
        "index_keys_block_bytes": lanes.index_keys,
        "sketch_block_bytes": lanes.sketch,
        "half_codes_block_bytes": lanes.half_codes,
    }


def _row_json(row: Row) -> dict[str, Any]:
    way, pace = row.way, row.pace
    found: dict[str, Any] = {
        "context": row.task.context,
        "users": row.task.users,
        "experts_from_disk": way.streamed,
        "kv_paged": way.paged,
        "need_bytes": way.need,
        "missing_bytes": way.missing,
        "fits": way.fits,
        "weights_bytes": way.weights,
        "cache_bytes": way.cache,
        "frames_bytes": way.frames_given if way.fits else way.frames,
        "store_bytes": way.stored,
        "cached_experts": way.cached_experts,
        "runs_in_this_version": not row.why_not,
        "why_not": list(row.why_not),
        "decode_tokens_per_second": None,
        "prefill_tokens_per_second": None,
    }
    if pace is not None:
        found |= {
            "decode_tokens_per_second": pace.decode,
            "decode_tokens_per_second_reading_every_block": pace.slow_decode,
            "decode_bound": pace.decode_bound,
            "prefill_tokens_per_second": pace.prefill,
            "prefill_bound": pace.prefill_bound,
        }
    return found


def _expert_budget(plan: Plan, row: Row) -> int:
    return round(row.way.cached_experts * Fit(plan.subject, plan.weights, plan.cache).places_nbytes)


def start_line(plan: Plan, row: Row) -> str:
    """The command that serves the model in this way, as a shell takes it."""
    options: Mapping[str, object] = {
        "context-length": row.task.context,
        "cache-tokens": row.task.users * plan.cache.blocks(row.task.context) * plan.cache.block_tokens,
        "kv-dtype": plan.cache.kv_dtype,
        "activations": plan.settings.activations,
        "index": plan.subject.asked_index if plan.subject.asked_index != AUTO else None,
        "ram-budget": row.way.frames_given if row.way.paged else None,
        "expert-budget": _expert_budget(plan, row) if row.way.streamed else None,
    }
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return shlex.join(["freehold", "serve", str(plan.subject.path), *(word for pair in given for word in pair)])

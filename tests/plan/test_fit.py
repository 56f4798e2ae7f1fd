"""What fits: the numbers that are missing, and ways out that are ways out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.config import Activations
from freehold.core.errors import ArgumentError
from freehold.engine.memory import LEAST_FRAMES
from freehold.plan.calibration import Calibration, Identity
from freehold.plan.fit import RESERVED_NBYTES, Fit, Task
from freehold.plan.lanes import cache_cost
from freehold.plan.plan import PlanSettings, make_plan, start_line
from freehold.plan.subject import Subject, open_subject
from freehold.plan.tables import reports
from freehold.plan.verdict import gb, verdict
from freehold.plan.weights import FORMATS, Format, weight_cost
from support import published_m3

GB = 10**9
CALIBRATION = Calibration(
    Identity("cpu", 8, "avx2", 64, "0", "x"), "2026-01-01", 8, 100e9, 1e12, 2e12, 3e9, 1e9, disk_direct=True
)
tasks = st.builds(Task, st.integers(1, 2**20), st.integers(1, 300), st.integers(1, 4000 * GB))
formats = st.sampled_from(FORMATS)


@cache
def m3() -> Subject:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(published_m3.full_config()))
        return open_subject(str(path))


@cache
def fit_of(weights: Format = "as-stored") -> Fit:
    return Fit(m3(), weight_cost(m3(), weights), cache_cost(m3().lane_specs, 128, "bfloat16"))


@settings(max_examples=60, deadline=None)
@given(tasks, formats)
def test_a_way_fits_exactly_from_what_it_needs_on(task: Task, weights: Format) -> None:
    for way in fit_of(weights).ways(task):
        assert way.missing == max(0, way.need - task.ram)
        same = [
            next(w for w in fit_of(weights).ways(replace(task, ram=ram)) if w.name == way.name)
            for ram in (way.need - 1, way.need)
        ]
        assert [w.fits for w in same] == [False, True]


@settings(max_examples=60, deadline=None)
@given(tasks, formats)
def test_most_context_and_most_users_are_the_last_that_fit(task: Task, weights: Format) -> None:
    fit = fit_of(weights)
    for number, way in enumerate(fit.ways(task)):
        context, users = fit.most_context(task, way), fit.most_users(task, way)
        assert not context or fit.ways(replace(task, context=context))[number].fits
        assert context == 2**20 or not fit.ways(replace(task, context=context + 1))[number].fits
        assert not users or fit.ways(replace(task, users=users))[number].fits
        assert not fit.ways(replace(task, users=users + 1))[number].fits


@settings(max_examples=60, deadline=None)
@given(tasks, formats)
def test_memory_is_never_given_away_twice(task: Task, weights: Format) -> None:
    fit = fit_of(weights)
    for way in fit.ways(task):
        if not way.fits:
            continue
        assert 0 <= way.cached_experts <= 1
        held = fit.weights.total - round((1 - way.cached_experts) * fit.weights.routed)
        assert held + way.cache + way.frames_given + RESERVED_NBYTES <= task.ram + 2**20
        assert way.paged == (way.frames_given >= LEAST_FRAMES * fit.cache.frame)


@settings(max_examples=60, deadline=None)
@given(tasks, formats)
def test_a_verdict_gives_the_missing_number_and_ways_that_help(task: Task, weights: Format) -> None:
    said = verdict({one: fit_of(one) for one in FORMATS}, weights, task)
    ways = fit_of(weights).ways(task)
    fits = [way for way in ways if way.fits]
    assert ("does not fit, because" in said) == (not fits)
    if fits:
        assert f"fits with {fits[0].name}, which takes {gb(fits[0].need)} of" in said
    else:
        assert f"{gb(ways[-1].missing)} GB are missing" in said
    smaller, shorter, fewer = (
        re.search(f"--{option} (\\w+)", said.partition("Ways out")[2]) for option in ("weights", "context", "users")
    )
    number = 0 if fits else len(ways) - 1  # the way that the ways out are about
    if smaller is not None:
        assert fit_of(smaller[1]).best(task) is not None  # type: ignore[arg-type]
    if shorter is not None:
        assert fit_of(weights).ways(replace(task, context=int(shorter[1])))[number].fits
    if fewer is not None:
        assert fit_of(weights).ways(replace(task, users=int(fewer[1])))[number].fits
    more = re.search(r"more memory: ([\d,.]+) GB", said)  # rounded, and typed as it stands there
    if more is not None:
        ram = int(float(more[1].replace(",", "")) * GB)
        assert fit_of(weights).ways(replace(task, ram=ram))[number].fits


def test_published_m3_on_two_machines() -> None:
    """As the page about plans shows it."""
    for ram, weights, name in (
        (1100, "as-stored", "all in RAM"),
        (900, "as-stored", "all in RAM, K/V paged"),
        (520, "int8", "all in RAM, K/V paged"),
        (256, "int4", "experts from disk"),
        (64, "int4", "experts from disk, K/V paged"),
        (32, "int4", None),
    ):
        best = fit_of(weights).best(Task(2**20, 1, ram * GB))  # type: ignore[arg-type]
        assert (best and best.name) == name


def test_rates_say_what_they_are_bound_by() -> None:
    asked = PlanSettings(context=2**20, ram=256 * GB, weights="int4", kv_dtype="bfloat16")
    known = make_plan(m3(), asked, CALIBRATION, "calibrated")
    rows = {row.way.name: row for row in known.rows}
    from_disk = rows["experts from disk"].pace
    assert from_disk is not None
    assert from_disk.decode_bound == "disk"
    faster = make_plan(m3(), replace(asked, disk_bandwidth=10**12), CALIBRATION, "calibrated").rows[2].pace
    assert faster is not None
    assert faster.decode > from_disk.decode
    unknown = make_plan(m3(), asked, None, "this machine was not calibrated yet")
    assert all(row.pace is None for row in unknown.rows)
    assert any("not calibrated yet" in note and "--calibrate" in note for note in reports(unknown)[-1].notes)


def test_paged_rates_are_a_range() -> None:
    asked = PlanSettings(context=2**20, ram=64 * GB, weights="int4", kv_dtype="bfloat16")
    pace = make_plan(m3(), asked, CALIBRATION).rows[-1].pace
    assert pace is not None
    assert pace.slow_decode < pace.decode


def test_what_this_version_does_not_do_is_named() -> None:
    plan = make_plan(m3(), PlanSettings(weights="int4"))
    assert all(any("freehold quantize" in reason for reason in row.why_not) for row in plan.rows)
    assert all(not row.why_not for row in make_plan(m3(), PlanSettings(weights="bf16")).rows)


def test_the_command_of_a_streamed_way_gives_experts_their_budget() -> None:
    plan = make_plan(m3(), PlanSettings(context=2**17, ram=64 * GB, kv_dtype="bfloat16"))
    (row,) = (row for row in plan.rows if row.way.streamed and not row.way.paged)
    words = start_line(plan, row).split()
    budget = int(words[words.index("--expert-budget") + 1])
    assert budget + row.way.need <= 64 * GB + 2 * plan.weights.expert
    assert budget == pytest.approx(row.way.cached_experts * plan.weights.routed, abs=1)


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_the_command_computes_what_was_planned(activations: Activations) -> None:
    plan = make_plan(m3(), PlanSettings(context=8192, activations=activations))
    assert ("--activations int8" in start_line(plan, plan.rows[0])) == (activations == "int8")


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(ArgumentError, match="context is 1048577; the model was made for 1048576"):
        make_plan(m3(), PlanSettings(context=2**20 + 1))


def test_the_object_is_json() -> None:
    made = json.loads(json.dumps(make_plan(m3(), PlanSettings(), CALIBRATION).as_json(), allow_nan=False))
    assert made["model"]["parameters"]["total"] == published_m3.PARAMETERS
    assert len(made["ways"]) == 16
    assert {way["context"] for way in made["ways"]} == {8192, 32768, 131072, 2**20}

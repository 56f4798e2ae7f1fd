from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.operation.budget_book import BudgetBook
from freehold.server.operation.key_file import add_key
from freehold.server.operation.keys import Keys
from freehold.server.operation.limits import Limits, period_end, period_name
from freehold.server.operation.operation import Operation
from freehold.server.operation.principal import Allowance, Principal
from support.fake_backend import FakeBackend, Script

START = datetime(2026, 12, 31, 23, 0, tzinfo=timezone.utc)


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def now(self):
        return START + timedelta(seconds=self.seconds)


def holder(**allowance):
    return Principal("0" * 16, "a", frozenset({"inference"}), 0, Allowance(**allowance))


def limits_with(clock, book=None):
    return Limits(book, clock=clock, now=clock.now)


def test_requests_come_back_evenly():
    clock = Clock()
    limits, who = limits_with(clock), holder(requests_per_minute=6)
    assert [limits.admit(who).reason for _ in range(7)] == [""] * 6 + ["requests"]
    assert limits.admit(who).headers["Retry-After"] == "10"
    clock.seconds += 9.9
    assert limits.admit(who).reason == "requests"
    clock.seconds += 0.2
    assert [limits.admit(who).reason for _ in range(2)] == ["", "requests"]


@given(
    st.integers(1, 100),
    st.lists(st.floats(0, 30), max_size=60),
)
def test_no_pattern_of_requests_beats_the_pace(per_minute, waits):
    clock = Clock()
    limits, who = limits_with(clock), holder(requests_per_minute=per_minute)
    let_in = []
    for wait in waits:
        clock.seconds += wait
        if not limits.admit(who).reason:
            let_in.append(clock.seconds)
    for i, first in enumerate(let_in):
        for count, last in enumerate(let_in[i:], 1):
            # A full bucket, and what flowed in meanwhile; rounding of sums of floats aside.
            assert count <= per_minute + (last - first) * per_minute / 60 + 1e-6


def test_waiting_as_long_as_told_is_enough():
    clock = Clock()
    limits, who = limits_with(clock), holder(requests_per_minute=7, tokens_per_minute=100)
    limits.admit(who)
    limits.charge(who, 1000, 234)
    told = int(limits.admit(who).headers["Retry-After"])
    clock.seconds += told
    assert limits.admit(who).reason == ""


def test_tokens_are_charged_afterwards_and_paid_back():
    clock = Clock()
    limits, who = limits_with(clock), holder(tokens_per_minute=60)
    assert limits.admit(who).reason == ""
    limits.charge(who, 50, 40)
    verdict = limits.admit(who)
    assert (verdict.reason, verdict.headers["x-ratelimit-remaining-tokens"]) == ("tokens", "0")
    clock.seconds += 31
    assert limits.admit(who).reason == ""


def test_a_changed_limit_counts_at_once():
    limits = limits_with(Clock())
    assert [limits.admit(holder(requests_per_minute=1)).reason for _ in range(2)] == ["", "requests"]
    assert limits.admit(holder(requests_per_minute=2)).reason == ""
    assert limits.admit(holder()).headers == {}


def test_a_budget_is_told_with_every_answer():
    limits, who = limits_with(Clock()), holder(budget_tokens=10)
    limits.charge(who, 6, 1)
    wanted = {
        "x-ratelimit-limit-budget": "10",
        "x-ratelimit-remaining-budget": "3",
        "x-ratelimit-reset-budget": "3600.000s",
    }
    assert limits.admit(who).headers == wanted
    limits.charge(who, 9, 0)
    assert limits.admit(who).headers == {**wanted, "x-ratelimit-remaining-budget": "0", "Retry-After": "3600"}


@pytest.mark.parametrize(("period", "until"), [("day", 3600), ("month", 3600)])
def test_a_budget_ends_and_begins_anew(period, until):
    clock = Clock()
    limits, who = limits_with(clock), holder(budget_tokens=10, budget_period=period)
    limits.charge(who, 6, 3)
    assert limits.admit(who).reason == ""
    limits.charge(who, 0, 1)
    verdict = limits.admit(who)
    assert (verdict.reason, verdict.headers["Retry-After"]) == ("budget", str(until))
    clock.seconds += until
    assert limits.admit(who).reason == ""


def test_budgets_outlive_the_process_and_are_shared(tmp_path):
    clock, who = Clock(), holder(budget_tokens=10)
    first = limits_with(clock, BudgetBook(tmp_path / "b.sqlite"))
    second = limits_with(clock, BudgetBook(tmp_path / "b.sqlite"))
    first.charge(who, 4, 0)
    second.charge(who, 6, 0)
    assert first.spent(who) == second.spent(who) == 10
    # Not closed: a killed process closes nothing.
    assert limits_with(clock, BudgetBook(tmp_path / "b.sqlite")).admit(who).reason == "budget"
    assert limits_with(clock, BudgetBook(tmp_path / "b.sqlite")).admit(holder(budget_tokens=11)).reason == ""
    first.close()
    second.close()


def test_what_cannot_be_written_counts_and_is_written_later(tmp_path, caplog):
    book = BudgetBook(tmp_path / "b.sqlite")
    book._db.execute("PRAGMA query_only=1")
    book.add("k", "2026", 5)
    assert "cannot be written" in caplog.text
    assert book.used("k", "2026") == 5
    book._db.execute("PRAGMA query_only=0")
    book.add("k", "2026", 2)
    assert book.used("k", "2026") == 7
    assert BudgetBook(tmp_path / "b.sqlite").used("k", "2026") == 7


def test_a_file_that_is_no_book(tmp_path):
    (tmp_path / "b.sqlite").write_text("not a database" * 100)
    with pytest.raises(ConfigError, match=r"b\.sqlite"):
        BudgetBook(tmp_path / "b.sqlite")


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["day", "month"]))
def test_a_period_ends_where_the_next_has_another_name(now, period):
    end = period_end(now, period)
    assert end > now
    assert period_name(end, period) != period_name(now, period)
    assert period_name(end - timedelta(microseconds=1), period) == period_name(now, period)


@pytest.fixture
def limited(ask, tmp_path):
    """An asker with a limited key, and the limits that count it."""

    def make(script=None, **limits):
        key = add_key(tmp_path / "keys.json", "a", now=START, **limits)
        backend, counted = FakeBackend(script or Script()), Limits()
        operation = Operation.of(backend, keys=Keys(tmp_path / "keys.json"), limits=counted)
        keys_holder = operation.keys.find(key)
        return ask(create_app(backend, operation=operation), Authorization=f"Bearer {key}"), counted, keys_holder

    return make


def test_the_answer_tells_the_limits_and_429_when_to_come_back(limited):
    asker, _, _ = limited(requests_per_minute=2)
    response = asker.chat()
    assert response.headers["x-ratelimit-limit-requests"] == "2"
    assert response.headers["x-ratelimit-remaining-requests"] == "1"
    asker.chat()
    response = asker.chat()
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    # Looking costs nothing.
    assert asker.get("/v1/models").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_and_answer_are_charged(limited, stream):
    asker, limits, who = limited(budget_tokens=10_000)
    usage = asker.complete(prompt="x" * 40, n=2).json()["usage"]
    spent = limits.spent(who)
    assert spent == usage["total_tokens"] == 40 + usage["completion_tokens"]
    asker.complete(prompt="x" * 40, n=2, stream=stream)
    assert limits.spent(who) == 2 * spent


def test_refused_requests_cost_nothing(limited):
    asker, limits, who = limited(budget_tokens=10_000)
    assert asker.complete(model="other").status_code == 404
    assert limits.spent(who) == 0


def test_a_used_budget_is_a_429_with_its_own_code(limited):
    asker, _, _ = limited(budget_tokens=1)
    assert asker.chat().status_code == 200
    response = asker.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (429, "insufficient_quota")


@pytest.mark.parametrize(
    ("limit", "code"),
    [({"budget_tokens": 100}, "insufficient_quota"), ({"tokens_per_minute": 100}, "rate_limit_exceeded")],
)
def test_requests_that_run_at_once_cross_a_limit_no_further_than_one_after_the_other(tmp_path, limit, code):
    key = add_key(tmp_path / "keys.json", "a", now=START, **limit)
    backend = FakeBackend(Script(prefill=0.2))
    operation = Operation.of(backend, keys=Keys(tmp_path / "keys.json"))
    app = create_app(backend, operation=operation)

    async def together():
        transport, headers = httpx.ASGITransport(app), {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            body = {"model": "fake/model", "prompt": "x" * 40}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(20)))

    responses = asyncio.run(together())
    assert sorted(response.status_code for response in responses) == [200] * 3 + [429] * 17
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.json()["error"]["code"] == code
    assert int(refused.headers["retry-after"]) >= 1
    assert len(backend.streams) == 3


def test_what_runs_no_more_holds_nothing(limited):
    asker, limits, who = limited(budget_tokens=200)
    for _ in range(3):
        assert asker.complete(prompt="x" * 40).status_code == 200
    assert limits.admit(who).headers["x-ratelimit-remaining-budget"] == str(200 - limits.spent(who))

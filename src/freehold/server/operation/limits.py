"""What each key may use up: a pace for requests and tokens, and a budget of tokens for a day or a month."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from freehold.core.errors import AllowanceError
from freehold.server.operation.budget_book import BudgetBook
from freehold.server.operation.principal import Principal


@dataclass(slots=True)
class _Bucket:
    """A minute's worth at most, filled evenly. What is not known before it is used is taken afterwards, so the level
    may be below zero; then the key waits until it is above."""

    per_minute: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(float(self.per_minute), self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level) * 60 / self.per_minute)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may go on, and what the client is told about its limits.

    reason: "" if it may; otherwise "requests", "tokens" or "budget", for the metrics. message: for the client.
    headers: of the answer, also of a good one.
    """

    reason: str
    message: str
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """Of OpenAI's errors."""
        return "insufficient_quota" if self.reason == "budget" else "rate_limit_exceeded"

    def error(self) -> AllowanceError:
        """The refusal, for those who raise it."""
        return AllowanceError(self.message, code=self.code, retry_seconds=float(self.headers["Retry-After"]))


class Limits:
    """Counts what every key uses. Not thread-safe: it lives on the event loop.

    book: where the tokens of budgets are kept over restarts. clock: monotonic seconds. now: the time of day, UTC.
    """

    def __init__(
        self,
        book: BudgetBook | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._book = book if book is not None else BudgetBook(None)
        self._clock, self._now = clock, now
        self._requests: dict[str, _Bucket] = {}
        self._tokens: dict[str, _Bucket] = {}
        self._running: dict[str, list[Callable[[], int]]] = {}

    def admit(self, principal: Principal) -> Verdict:
        """Count one request of `principal`, unless one of its limits is used up; then nothing is counted."""
        return self._judge(principal, new=True)

    def look_again(self, principal: Principal) -> Verdict:
        """Whether a request that was admitted may have its tokens: others of the key may have begun meanwhile."""
        return self._judge(principal, new=False)

    @contextmanager
    def running(self, principal: Principal, tokens: Callable[[], int]) -> Iterator[None]:
        """Inside it, what `tokens` gives counts as used, since it will be charged; else any number of requests that
        run at once would cross a limit."""
        held = self._running.setdefault(principal.key_id, [])
        held.append(tokens)
        try:
            yield
        finally:
            held.remove(tokens)
            if not held:
                self._running.pop(principal.key_id, None)

    def _judge(self, principal: Principal, *, new: bool) -> Verdict:
        allowance = principal.allowance
        requests = self._bucket(self._requests, principal.key_id, allowance.requests_per_minute)
        tokens = self._bucket(self._tokens, principal.key_id, allowance.tokens_per_minute)
        reason, message, wait = "", "", 0.0
        held = sum(running() for running in self._running.get(principal.key_id, ()))
        left = None if allowance.budget_tokens is None else allowance.budget_tokens - self._spent(principal) - held
        end = period_end(self._now(), allowance.budget_period)
        until_end = (end - self._now()).total_seconds()
        if left is not None and left <= 0:
            reason, wait = "budget", until_end
            message = (
                f"the key {principal.name!r} has used its {allowance.budget_tokens} tokens of this "
                f"{allowance.budget_period}; the next {allowance.budget_period} begins at {end:%Y-%m-%dT%H:%M:%SZ}"
            )
        elif new and requests is not None and requests.level < 1:
            reason, wait = "requests", requests.seconds_until(1)
            message = f"the key {principal.name!r} may send {requests.per_minute} requests per minute"
        elif tokens is not None and tokens.level - held <= 0:
            reason, wait = "tokens", tokens.seconds_until(1)
            message = f"the key {principal.name!r} may use {tokens.per_minute} tokens per minute"
        elif new and requests is not None:
            requests.level -= 1
        headers = _headers("requests", requests) | _headers("tokens", tokens, held)
        if left is not None:
            headers |= _header_lines("budget", allowance.budget_tokens or 0, left, until_end)
        if reason:
            headers["Retry-After"] = str(max(1, math.ceil(wait)))
            message += f"; try again in {headers['Retry-After']} seconds"
        return Verdict(reason, message, headers)

    def charge(self, principal: Principal, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of a request that has ended, however it ended: also of one that was given up."""
        used = prompt_tokens + completion_tokens
        tokens = self._bucket(self._tokens, principal.key_id, principal.allowance.tokens_per_minute)
        if tokens is not None:
            tokens.level -= used
        # Also without a budget: one may be set later, in the middle of a period.
        if principal.key_id and used:
            for period in ("day", "month"):
                self._book.add(principal.key_id, period_name(self._now(), period), used)

    def spent(self, principal: Principal) -> int:
        """Tokens used in the budget's period so far."""
        return self._spent(principal)

    def close(self) -> None:
        """Close the book; what was charged is in it already."""
        self._book.close()

    def _spent(self, principal: Principal) -> int:
        return self._book.used(principal.key_id, period_name(self._now(), principal.allowance.budget_period))

    def _bucket(self, buckets: dict[str, _Bucket], key_id: str, per_minute: int | None) -> _Bucket | None:
        """The key's bucket, refilled; full when it is new, and again when the key's limit was changed."""
        if per_minute is None:
            buckets.pop(key_id, None)
            return None
        bucket = buckets.get(key_id)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = buckets[key_id] = _Bucket(per_minute, float(per_minute), self._clock())
        bucket.refill(self._clock())
        return bucket


def _headers(what: str, bucket: _Bucket | None, held: int = 0) -> dict[str, str]:
    if bucket is None:
        return {}
    # Until it is full again, as OpenAI's clients read it.
    return _header_lines(what, bucket.per_minute, bucket.level - held, bucket.seconds_until(bucket.per_minute))


def _header_lines(what: str, limit: int, left: float, reset_seconds: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, math.floor(left))),
        f"x-ratelimit-reset-{what}": f"{reset_seconds:.3f}s",
    }


def period_name(now: datetime, period: str) -> str:
    """The day or month that `now` is in: 2026-11-24 or 2026-11."""
    return f"{now:%Y-%m-%d}" if period == "day" else f"{now:%Y-%m}"


def period_end(now: datetime, period: str) -> datetime:
    """When the next day or month begins."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return day + timedelta(days=1)
    return day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1, day=1)

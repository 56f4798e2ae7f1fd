"""One record of the ledger: who asked what of which model, what was decided, how it ended, and what it cost.

It holds no prompt and no answer, only hashes of them under a salt that is kept beside and can be erased.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any, Literal

from freehold.core.errors import GovernanceError
from freehold.governance.signing import canonical

Kind = Literal["request", "decision", "erasure", "gap"]
"""A request; a gateway's decision to send one, written before it is sent; bodies or salts that were erased; a time in
which the ledger could not be written."""

Outcome = Literal["served", "refused", "failed", "aborted", "disconnected"]
"""How a request ended: answered whole; not begun, by a rule or a limit; broken off by a fault of ours; broken off by
time, a drain or an operator; given up by its client. What of an answer had been sent by then counts in `usage`."""

KINDS: tuple[str, ...] = typing.get_args(Kind)
OUTCOMES: tuple[str, ...] = typing.get_args(Outcome)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one request.

    input_tokens: of the prompt, all of them. cached_tokens, cache_write_tokens: those of them that were read from a
        cache, or written to one at a price of its own. output_tokens: of the answer, with its reasoning.
    reasoning_tokens: those of them; None: not told apart.
    estimated: the request broke off, or its endpoint did not say: these were counted on the way.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int | None = None
    estimated: bool = False

    def __post_init__(self) -> None:
        counts = (self.input_tokens, self.cached_tokens, self.cache_write_tokens, self.output_tokens)
        if min(counts) < 0 or self.cached_tokens + self.cache_write_tokens > self.input_tokens:
            raise GovernanceError(
                f"This usage cannot be: {self.input_tokens} input tokens, of which {self.cached_tokens} cached and "
                f"{self.cache_write_tokens} written to a cache, {self.output_tokens} output tokens."
            )
        if self.reasoning_tokens is not None and not 0 <= self.reasoning_tokens <= self.output_tokens:
            raise GovernanceError(
                f"This usage cannot be: {self.reasoning_tokens} of {self.output_tokens} output tokens are reasoning."
            )


PriceBasis = Literal["charged", "list", "unpriced"]


@dataclass(frozen=True, slots=True)
class RecordedPrice:
    """What a request cost, as known when it ended.

    basis: "charged" by an endpoint that takes money; "list", what the model's own API would have taken for tokens
        that own hardware computed; "unpriced", where the table does not know the model: never 0.
    amount: in US dollars, a decimal; None where it is unpriced. item: the table's entry, `provider:model`.
    table: the price table's SHA-256. effective: the entry's date, or the table's.
    estimated: as the usage is.
    """

    basis: PriceBasis
    amount: str | None
    item: str | None
    table: str
    effective: str
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRecord:
    """One record; what is not known or does not apply is None.

    id: the request's, unique in the ledger. time: its end, UTC, ISO 8601. seconds: since its arrival.
    key: the id of the client's key; None: no key was asked for. api: the path it came by.
    model_asked, model: as the client named it; as it answered. endpoint: where it was computed; "local" is here.
    data_class, clause, policy: what a policy decided on, by which clause, and the policy's SHA-256.
    status: of HTTP. reason: why it ended: the engine's word, or the refusal's code.
    request_hash, answer_hash: HMAC-SHA256 of the bytes under the record's salt, in hex. salt_hash: of the salt itself;
        the ledger sets it.
    details: further members of other kinds, and of whoever has more to say.
    """

    id: str
    time: str
    kind: Kind = "request"
    outcome: Outcome | None = None
    reason: str | None = None
    status: int | None = None
    seconds: float | None = None
    key: str | None = None
    api: str | None = None
    model_asked: str | None = None
    model: str | None = None
    endpoint: str | None = None
    data_class: str | None = None
    clause: str | None = None
    policy: str | None = None
    usage: TokenUsage | None = None
    price: RecordedPrice | None = None
    request_hash: str | None = None
    answer_hash: str | None = None
    salt_hash: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id or self.kind not in KINDS or (self.outcome is not None and self.outcome not in OUTCOMES):
            raise GovernanceError(
                f"A record needs an id, a kind and an outcome that are known; it has {self.id!r}, {self.kind!r} and "
                f"{self.outcome!r}."
            )
        parse_time(self.time)

    def line(self, seq: int) -> bytes:
        """The record as the ledger's line number `seq`: canonical JSON, without what is None, no line break."""
        values = asdict(self)
        values["details"] = dict(self.details)
        members = {name: _without_none(value) for name, value in values.items() if value is not None and value != {}}
        return canonical({"seq": seq, **members})

    @staticmethod
    def read(members: Mapping[str, Any]) -> LedgerRecord:
        """A record from its JSON members, `seq` left out. Raises GovernanceError for what is none."""
        _check_members(members)
        try:
            values = dict(members)
            if "usage" in values:
                values["usage"] = TokenUsage(**values["usage"])
            if "price" in values:
                values["price"] = RecordedPrice(**{"amount": None, "item": None, **values["price"]})
            return LedgerRecord(**values)
        except TypeError as error:
            raise GovernanceError(f"A record has members that do not belong there: {error}.") from error


_OTHERS = {"seconds": (int, float), "status": int, "usage": dict, "price": dict, "details": dict}
_PARTS: dict[str, Any] = {
    "usage": {"estimated": bool},
    "price": {"estimated": bool},
}
_AMOUNT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,30})?")
_MOST_SECONDS = 10.0**9


def _check_members(members: Mapping[str, Any]) -> None:
    """Raises GovernanceError for values that no record has, so that nothing later fails by them."""
    for name, value in members.items():
        _check_kind(name, value, _OTHERS.get(name, str))
    for name, other in (("usage", int), ("price", str)):
        for part, value in members.get(name, {}).items():
            _check_kind(f"{name}.{part}", value, _PARTS[name].get(part, other))
    amount = members.get("price", {}).get("amount", "0")
    if not _AMOUNT.fullmatch(amount):
        raise GovernanceError(f"A record's price is {amount[:40]!r}, which is no amount.")
    if not 0 <= members.get("seconds", 0) <= _MOST_SECONDS:
        raise GovernanceError(f"A record's seconds are {members['seconds']!r}, which cannot be.")


def _check_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise GovernanceError(f"A record has {name[:40]!r} of a kind that does not belong there: {str(value)[:40]!r}.")


FIELDS = tuple(field.name for field in fields(LedgerRecord))


def _without_none(value: Any) -> Any:
    return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value


def read_line(line: bytes) -> tuple[int, LedgerRecord]:
    """The number and the record of a line. Raises GovernanceError for what is no record."""
    try:
        members = json.loads(line)
        seq = members.pop("seq")
        if type(seq) is not int:
            raise TypeError(seq)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise GovernanceError("A line of the ledger is no record in JSON.") from error
    return seq, LedgerRecord.read(members)


def now_text(moment: datetime | None = None) -> str:
    """A time as records have it: UTC, to the millisecond."""
    moment = datetime.now(timezone.utc) if moment is None else moment.astimezone(timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """A record's time. Raises GovernanceError for what is none."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (ValueError, AttributeError, TypeError) as error:
        raise GovernanceError(f"{text!r} is no time of a record, such as 2026-11-29T12:00:00.000Z.") from error
    if moment.tzinfo is None:
        raise GovernanceError(f"The time {text!r} of a record does not say its offset from UTC.")
    if not 1970 <= moment.year <= 9000:
        raise GovernanceError(f"The time {text!r} of a record cannot be.")
    return moment

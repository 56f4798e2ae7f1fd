"""Small ledgers for tests: records that differ in everything, and a tree straight from RFC 9162's definition."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from freehold.governance.cost.prices import PriceTable, shipped_table
from freehold.governance.ledger.ledger import Ledger
from freehold.governance.ledger.record import LedgerRecord, RecordedPrice, TokenUsage, now_text
from freehold.governance.ledger.salted import SaltedHashes, salt_commitment
from freehold.governance.signing import SigningKey

BEGIN = datetime(2026, 11, 2, 8, 0, tzinfo=timezone.utc)


def a_record(number: int, hashes: SaltedHashes | None = None, **changes: object) -> LedgerRecord:
    """A request that was served, a minute after the one before."""
    fields: dict[str, object] = {
        "id": f"request-{number}",
        "time": now_text(BEGIN + timedelta(minutes=number)),
        "outcome": "served",
        "reason": "stop",
        "status": 200,
        "seconds": 1.5 + number,
        "key": f"key-{number % 3}",
        "api": "/v1/chat/completions",
        "model_asked": "m3",
        "model": "MiniMax-M3",
        "endpoint": "local",
        "usage": TokenUsage(input_tokens=100 + number, cached_tokens=number % 50, output_tokens=20),
        "price": RecordedPrice("list", "0.0001", "minimax:minimax-m3", "ab" * 32, "2026-10-15"),
        "request_hash": hashes.request if hashes else None,
        "answer_hash": hashes.answer if hashes else None,
        "salt_hash": salt_commitment(hashes.salt) if hashes else None,
    }
    return LedgerRecord(**{**fields, **changes})  # type: ignore[arg-type]


def content(number: int) -> tuple[bytes, bytes]:
    """The bytes of a request and of its answer."""
    return f"question {number}".encode(), f"answer {number}".encode()


def hashes_of(number: int) -> SaltedHashes:
    """Of `content`, under a salt that follows from the number."""
    hashes = SaltedHashes(hashlib.sha256(f"salt {number}".encode()).digest())
    request, answer = content(number)
    hashes.add_request(request)
    hashes.add_answer(answer)
    return hashes


def fill(ledger: Ledger, count: int, first: int = 0) -> None:
    """Append records, and wait until they are durable."""
    promises = []
    for number in range(first, first + count):
        hashes = hashes_of(number)
        promises.append(ledger.append(a_record(number, hashes), hashes.salt))
    for promise in promises:
        promise.result(timeout=60)


def new_ledger(path: Path, key: SigningKey, count: int) -> Path:
    """A closed ledger of some records."""
    with Ledger(path, key) as ledger:
        fill(ledger, count)
    return path


def copied(source: Path, target: Path) -> Path:
    """The ledger once more, to be tampered with."""
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target))


# --- the definition, RFC 9162 section 2.1, as it stands there ------------------------------------------------


def defined_root(entries: Sequence[bytes]) -> bytes:
    """MTH(D[n])."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = defined_split(len(entries))
    return hashlib.sha256(b"\x01" + defined_root(entries[:k]) + defined_root(entries[k:])).digest()


def defined_split(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def defined_path(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n])."""
    if len(entries) == 1:
        return []
    k = defined_split(len(entries))
    if m < k:
        return [*defined_path(m, entries[:k]), defined_root(entries[k:])]
    return [*defined_path(m - k, entries[k:]), defined_root(entries[:k])]


def defined_proof(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """PROOF(m, D[n]) for 0 < m < n."""
    return _defined_subproof(m, entries, True)


def _defined_subproof(m: int, entries: Sequence[bytes], whole: bool) -> list[bytes]:
    if m == len(entries):
        return [] if whole else [defined_root(entries)]
    k = defined_split(len(entries))
    if m <= k:
        return [*_defined_subproof(m, entries[:k], whole), defined_root(entries[k:])]
    return [*_defined_subproof(m - k, entries[k:], False), defined_root(entries[:k])]


def example_month(path: Path, key: SigningKey) -> Path:
    """A ledger as a team's coding agents fill it in November 2026: 3,000 requests on working days, mostly long prompts
    that were nearly all found in the cache. It began in October. The same on every machine."""
    table = shipped_table()
    promises = []
    with Ledger(path, key) as ledger:
        before = LedgerRecord(id="before", time="2026-10-30T12:00:00.000Z", outcome="refused", status=429)
        promises.append(ledger.append(before))
        for number in range(3000):
            promises.append(ledger.append(_example_request(number, table)))
        for promise in promises:
            promise.result(timeout=120)
    return path


def _example_request(number: int, table: PriceTable) -> LedgerRecord:
    day, place = divmod(number, 150)
    moment = datetime(2026, 11, 2 + day // 5 * 7 + day % 5, 8, 0, tzinfo=timezone.utc) + timedelta(minutes=4 * place)
    fields: dict[str, object] = {"id": f"{number:06d}", "time": now_text(moment), "key": f"key-{number % 7}"}
    fields |= {"api": "/v1/messages", "model_asked": "minimax-m3"}
    if number % 60 == 59:
        return LedgerRecord(**fields, outcome="refused", status=429, reason="budget", seconds=0.01)  # type: ignore[arg-type]
    given = 620_000 if number % 100 == 7 else 30_000 + number * 7919 % 90_000
    gone = number % 45 == 13
    usage = TokenUsage(
        input_tokens=given,
        cached_tokens=given * 9 // 10 // 128 * 128,
        output_tokens=120 if gone else 500 + number * 104_729 % 1500,
        estimated=gone,
    )
    priced = table.price("MiniMax-M3", usage, moment)
    assert priced is not None
    price = RecordedPrice(
        "list", f"{priced.amount.normalize():f}", priced.entry.id, table.hash, priced.effective.isoformat(), gone
    )
    return LedgerRecord(
        **fields,  # type: ignore[arg-type]
        outcome="disconnected" if gone else "served",
        status=200,
        reason="aborted" if gone else "stop",
        seconds=round(5 + (given - usage.cached_tokens) / 2500 + usage.output_tokens / 40, 3),
        model="MiniMax-M3",
        endpoint="local",
        usage=usage,
        price=price,
    )

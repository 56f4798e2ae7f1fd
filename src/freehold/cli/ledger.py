"""Where requests meet the ledger: a server's ends of requests become records, priced by the table."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freehold.governance.cost.prices import PriceTable
    from freehold.governance.ledger.ledger import Ledger
    from freehold.governance.ledger.record import LedgerRecord, RecordedPrice, TokenUsage
    from freehold.governance.signing import SigningKey
    from freehold.server.operation.recorder import RequestEnd


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """ledger: directory in which every request is recorded, before its answer is whole; made where there is none.
    ledger_key: PEM file with the key that signs it, made where there is none; left out: FREEHOLD_HOME/ledger-key.pem.
    checkpoint_dir: where signed checkpoints are put; a place that this machine's keeper cannot change proves most.
    checkpoint_command: started with each checkpoint on its standard input.
    checkpoint_records: a checkpoint is exported after so many new records, and at the end.
    checkpoint_seconds: and after so long, if there are new ones.
    prices: TOML file with prices of your own, each with its source and date.
    """

    ledger: Path | None = None
    ledger_key: Path | None = None
    checkpoint_dir: Path | None = None
    checkpoint_command: str | None = None
    checkpoint_records: int = 1000
    checkpoint_seconds: float = 3600.0
    prices: Path | None = None


def ledger_key_file(path: Path | None) -> Path:
    """The file of the ledger's key: the one that is named, or this FREEHOLD_HOME's."""
    from freehold.loading.home import freehold_home

    return freehold_home() / "ledger-key.pem" if path is None else path


def ledger_key(path: Path | None) -> SigningKey:
    """The key in a file; by default the one of this FREEHOLD_HOME, which is made where there is none."""
    from freehold.governance.signing import SigningKey

    return SigningKey.load_or_create(ledger_key_file(path))


def price_table(overrides: Path | None) -> PriceTable:
    """The shipped prices, with those of a file before them."""
    from freehold.governance.cost.prices import shipped_table

    table = shipped_table()
    return table if overrides is None else table.with_overrides(overrides)


@contextmanager
def open_recorder(options: LedgerOptions, say: Callable[[str], None]) -> Iterator[LedgerRecorder | None]:
    """A recorder into the ledger that is named; None where none is. Raises ConfigError and GovernanceError."""
    from freehold.core.errors import ConfigError

    if options.ledger is None:
        lost = [
            name for name in ("ledger_key", "checkpoint_dir", "checkpoint_command", "prices") if getattr(options, name)
        ]
        if lost:
            raise ConfigError(f"{lost[0]} is given, and no ledger: name its directory with --ledger")
        yield None
        return
    from freehold.governance.ledger.export import ExportOptions, Exports
    from freehold.governance.ledger.ledger import Ledger

    table = price_table(options.prices)
    command = shlex.split(options.checkpoint_command or "")
    export = ExportOptions(options.checkpoint_records, options.checkpoint_seconds, options.checkpoint_dir, command)
    # Without a place elsewhere, checkpoints are still kept beside the ledger.
    exports = Exports(export, say)
    with Ledger(options.ledger, ledger_key(options.ledger_key), exports=exports, say=say) as ledger:
        say(f"Every request is recorded in {options.ledger} ({ledger.size} records so far).")
        if options.checkpoint_dir is None and not command:
            say("Checkpoints stay beside the ledger; --checkpoint-dir or --checkpoint-command takes them elsewhere.")
        yield LedgerRecorder(ledger, table)


class LedgerRecorder:
    """A `freehold.server.operation.recorder.Recorder`. table: prices of the records."""

    def __init__(self, ledger: Ledger, table: PriceTable) -> None:
        self._ledger, self._table = ledger, table

    async def write(self, record: LedgerRecord) -> None:
        """A record without content, durable when this returns. Raises GovernanceError."""
        await self._ledger.record(record)

    def begin(self) -> LedgerDraft:
        """A request begins. Raises GovernanceError while the ledger cannot be written."""
        self._ledger.check()
        return LedgerDraft(self._ledger, self._table)


class LedgerDraft:
    """The record of one request, while it is under way."""

    def __init__(self, ledger: Ledger, table: PriceTable) -> None:
        from freehold.governance.ledger.salted import SaltedHashes

        self._ledger, self.table = ledger, table
        self._hashes = SaltedHashes()

    def hear_request(self, data: bytes) -> None:
        """More bytes of the request's body."""
        self._hashes.add_request(data)

    def hear_answer(self, data: bytes) -> None:
        """More bytes of the answer's body."""
        self._hashes.add_answer(data)

    async def finish(self, end: RequestEnd) -> None:
        """Write the record, and wait until it is durable. Raises GovernanceError where it cannot be."""
        await self.write(self.record_of(end))

    async def write(self, record: LedgerRecord) -> None:
        """Write what `record_of` gave, or more of it. Raises GovernanceError."""
        await self._ledger.record(record, self._hashes.salt)

    def record_of(self, end: RequestEnd) -> LedgerRecord:
        """The record of a request that this server answered itself."""
        from freehold.governance.cost.traffic import LOCAL
        from freehold.governance.ledger.record import LedgerRecord, TokenUsage, now_text

        usage = None
        if end.had_tokens:
            cached = min(end.cached_tokens, end.prompt_tokens)
            usage = TokenUsage(
                input_tokens=end.prompt_tokens,
                cached_tokens=cached,
                output_tokens=end.completion_tokens,
                estimated=not end.whole,
            )
        return LedgerRecord(
            id=end.request_id,
            time=now_text(),
            outcome=end.ending,
            reason=end.reason,
            status=end.status,
            seconds=end.seconds,
            key=end.key_id or None,
            api=end.route,
            model_asked=end.model_asked,
            model=end.model,
            endpoint=LOCAL if end.had_tokens else None,
            usage=usage,
            price=None if usage is None else recorded_price(self.table, end.model or "", usage, charged=False),
            request_hash=self._hashes.request,
            answer_hash=self._hashes.answer,
        )


def recorded_price(table: PriceTable, model: str, usage: TokenUsage, *, charged: bool) -> RecordedPrice:
    """What is recorded of a request's price. charged: its endpoint takes money; otherwise it is the list price of what
    own hardware computed."""
    from freehold.governance.ledger.record import RecordedPrice

    priced = table.price(model, usage)
    if priced is None:
        return RecordedPrice("unpriced", None, None, table.hash, table.day.isoformat(), usage.estimated)
    amount = f"{priced.amount.normalize():f}"
    return RecordedPrice(
        "charged" if charged else "list",
        amount,
        priced.entry.id,
        table.hash,
        priced.effective.isoformat(),
        usage.estimated,
    )

"""`freehold serve --ledger`: requests over HTTP become records that verify, with usage, price and hashes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from freehold.cli.ledger import LedgerOptions, open_recorder
from freehold.cli.main import main
from freehold.core.errors import ConfigError
from freehold.governance.cost.prices import shipped_table
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.record import LedgerRecord, RecordedPrice, TokenUsage
from freehold.governance.ledger.salted import SaltedHashes
from freehold.governance.ledger.verify import verify
from freehold.server.app import create_app
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.operation import Operation
from support.fake_backend import FakeBackend, Script

CHAT = {"model": "minimax-m3", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def served(options: LedgerOptions, backend: FakeBackend, bodies: list[dict[str, object]]) -> list[httpx.Response]:
    """The answers of a server with a ledger, one after the other."""

    async def ask() -> list[httpx.Response]:
        with open_recorder(options, lambda _text: None) as recorder:
            app = create_app(
                backend, aliases=("minimax-m3",), operation=Operation(Metrics(backend.stats), recorder=recorder)
            )
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return [await client.post("/v1/chat/completions", json=body) for body in bodies]

    return asyncio.run(ask())


def records(path: Path) -> list[LedgerRecord]:
    return [record for leaf in LedgerFiles(path).leaves() if (record := leaf.record()) is not None]


def test_requests_become_records(tmp_path: Path, home: Path) -> None:
    backend = FakeBackend(cached_tokens=4)
    backend.model_name = "MiniMax-M3"
    options = LedgerOptions(tmp_path / "ledger", checkpoint_dir=tmp_path / "elsewhere")
    whole, streamed, refused = served(options, backend, [CHAT, {**CHAT, "stream": True}, {**CHAT, "model": "other"}])
    table = shipped_table()
    first, second, third = records(tmp_path / "ledger")
    usage = TokenUsage(input_tokens=9, cached_tokens=4, output_tokens=3)
    assert (first.outcome, first.model_asked, first.model, first.endpoint) == (
        "served",
        "minimax-m3",
        "MiniMax-M3",
        "local",
    )
    assert first.usage == second.usage == usage
    # 5 x 0.30 + 4 x 0.06 + 3 x 1.20 millionths
    assert first.price == RecordedPrice("list", "0.00000534", "minimax:minimax-m3", table.hash, "2026-10-15")
    assert (third.outcome, third.status, third.model_asked, third.usage, third.price) == (
        "refused",
        404,
        "other",
        None,
        None,
    )
    files = LedgerFiles(tmp_path / "ledger")
    for number, answer in enumerate((whole, streamed, refused)):
        hashes = SaltedHashes(files.salt(number))
        hashes.add_request(answer.request.content)
        hashes.add_answer(answer.content)
        record = records(tmp_path / "ledger")[number]
        assert (record.request_hash, record.answer_hash) == (hashes.request, hashes.answer)
        assert record.id == answer.headers["x-request-id"]
    (checkpoint,) = (tmp_path / "elsewhere").iterdir()
    report = verify(tmp_path / "ledger", [(checkpoint.name, checkpoint.read_text())])
    assert report.holds
    assert report.proven_size == 3
    assert (home / "ledger-key.pem").stat().st_mode & 0o077 == 0


def test_a_request_that_breaks_off_is_priced_by_what_came(tmp_path: Path) -> None:
    backend = FakeBackend(Script([b"a", b"b"], reason="timeout"))
    backend.model_name = "MiniMax-M3"
    served(LedgerOptions(tmp_path / "ledger"), backend, [{**CHAT, "stream": True}])
    (record,) = records(tmp_path / "ledger")
    assert record.outcome == "aborted"
    assert record.usage == TokenUsage(input_tokens=9, output_tokens=2, estimated=True)
    assert record.price is not None
    # 9 x 0.30 + 2 x 1.20 millionths
    assert (record.price.amount, record.price.estimated) == ("0.0000051", True)


def test_an_unknown_model_is_unpriced(tmp_path: Path) -> None:
    served(LedgerOptions(tmp_path / "ledger"), FakeBackend(), [CHAT])
    (record,) = records(tmp_path / "ledger")
    table = shipped_table()
    assert record.price == RecordedPrice("unpriced", None, None, table.hash, table.day.isoformat())


def test_own_prices_count(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    entry = 'provider = "minimax"\nmodel = "fake/model"\ninput = 1\noutput = 2\nsource = "a test"\ndate = 2026-11-29\n'
    prices.write_text(f"[[price]]\n{entry}")
    served(LedgerOptions(tmp_path / "ledger", prices=prices), FakeBackend(), [CHAT])
    (record,) = records(tmp_path / "ledger")
    assert record.price is not None
    assert record.price.amount == "0.000015"  # 9 x 1 + 3 x 2 millionths
    assert record.price.table != shipped_table().hash


def test_options_of_a_ledger_need_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ledger"), open_recorder(LedgerOptions(checkpoint_dir=tmp_path), print):
        pass
    with open_recorder(LedgerOptions(), print) as recorder:
        assert recorder is None


def test_a_changed_ledger_stops_the_server_before_the_model_loads(tmp_path: Path) -> None:
    served(LedgerOptions(tmp_path / "ledger"), FakeBackend(), [CHAT])
    file = tmp_path / "ledger" / "records" / "000000000000.jsonl"
    file.write_bytes(file.read_bytes().replace(b"served", b"failed"))
    done = CliRunner().invoke(main, ["serve", "no-such-model", "--ledger", str(tmp_path / "ledger")])
    assert done.exit_code == 1
    assert "not those that were signed" in done.stderr


def test_cost_reads_what_serve_wrote(tmp_path: Path) -> None:
    backend = FakeBackend(cached_tokens=4)
    backend.model_name = "MiniMax-M3"
    served(LedgerOptions(tmp_path / "ledger"), backend, [CHAT] * 3)
    done = CliRunner().invoke(main, ["cost", "report", str(tmp_path / "ledger"), "--json"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout.splitlines()[-1])
    assert body["list_usd"] == "0.00001602"  # 3 x 5.34 millionths
    assert body["price_tables"] == [shipped_table().hash]

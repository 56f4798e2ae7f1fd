"""Prices are those of the table, to the last digit: streams, aborts, cached and tiered requests, worked out by hand."""

from __future__ import annotations

import json
import warnings
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import ConfigError, GovernanceError
from freehold.governance.cost.genai import table_of_package
from freehold.governance.cost.prices import PriceEntry, PriceTable, Rate, read_table, shipped_table, table_text
from freehold.governance.ledger.record import TokenUsage

TABLE = shipped_table()
WHEN = datetime(2026, 11, 29, tzinfo=timezone.utc)


def cost(name: str, **usage: int) -> Decimal:
    priced = TABLE.price(name, TokenUsage(**usage), WHEN)
    assert priced is not None
    return priced.amount


# Each amount: tokens x dollars for a million, added up by hand.
BY_HAND = [
    # 2,000 x 0.30 + 1,000 x 1.20 = 600 + 1,200 millionths
    ("minimax-m3", {"input_tokens": 2000, "output_tokens": 1000}, "0.001800"),
    # (2,000 - 1,500) x 0.30 + 1,500 x 0.06 + 1,000 x 1.20 = 150 + 90 + 1,200
    ("minimax-m3", {"input_tokens": 2000, "cached_tokens": 1500, "output_tokens": 1000}, "0.001440"),
    # exactly 512,000: the lower tier still. 512,000 x 0.30 + 100 x 1.20 = 153,600 + 120
    ("minimax-m3", {"input_tokens": 512000, "output_tokens": 100}, "0.153720"),
    # one more: all of it, and the answer too, at the higher tier. 512,001 x 0.60 + 100 x 2.40 = 307,200.6 + 240
    ("minimax-m3", {"input_tokens": 512001, "output_tokens": 100}, "0.3074406"),
    # cached ones count for the tier. 100,000 x 0.60 + 500,000 x 0.12 + 10 x 2.40 = 60,000 + 60,000 + 24
    ("minimax-m3", {"input_tokens": 600000, "cached_tokens": 500000, "output_tokens": 10}, "0.120024"),
    # 1,000 x 5 + 9,000 x 0.50 + 2,000 x 6.25 + 400 x 25 = 5,000 + 4,500 + 12,500 + 10,000
    (
        "claude-opus-4-8",
        {"input_tokens": 12000, "cached_tokens": 9000, "cache_write_tokens": 2000, "output_tokens": 400},
        "0.032000",
    ),
    # flat to a million: 900,000 x 5 + 1 x 25
    ("claude-opus-4-8", {"input_tokens": 900000, "output_tokens": 1}, "4.500025"),
    # 272,000 x 5 + 1,000 x 30
    ("gpt-5.5", {"input_tokens": 272000, "output_tokens": 1000}, "1.390000"),
    # above 272,000: 200,000 x 10 + 72,001 x 1 + 1,000 x 45 = 2,000,000 + 72,001 + 45,000
    ("gpt-5.5", {"input_tokens": 272001, "cached_tokens": 72001, "output_tokens": 1000}, "2.117001"),
    # no price for writing to a cache: such tokens cost as any others. 1,000 x 0.30
    ("minimax-m3", {"input_tokens": 1000, "cache_write_tokens": 600}, "0.000300"),
    # an answer that broke off after 7 tokens: those that came, and the prompt. 120 x 0.30 + 7 x 1.20
    ("minimax-m3", {"input_tokens": 120, "output_tokens": 7}, "0.0000444"),
    # broken off while the prompt was read: what was read. 64 x 5
    ("gpt-5.5", {"input_tokens": 64}, "0.000320"),
    ("minimax-m3", {}, "0"),
]


@pytest.mark.parametrize(("name", "usage", "amount"), BY_HAND)
def test_prices_are_those_worked_out_by_hand(name: str, usage: dict[str, int], amount: str) -> None:
    assert cost(name, **usage) == Decimal(amount)


def test_reasoning_is_part_of_the_answer() -> None:
    with_reasoning = TokenUsage(input_tokens=10, output_tokens=50, reasoning_tokens=40)
    priced = TABLE.price("minimax-m3", with_reasoning)
    assert priced is not None
    assert priced.amount == cost("minimax-m3", input_tokens=10, output_tokens=50)


@pytest.mark.parametrize("name", ["smollm2-135m", "minimax-m4", "claude-opus-4-8-fast", "", "x:minimax-m3", "gpt-5.5-"])
def test_an_unknown_model_is_unpriced(name: str) -> None:
    assert TABLE.price(name, TokenUsage(input_tokens=10)) is None
    with pytest.raises(ConfigError, match="does not know"):
        TABLE.require(name)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("MiniMax-M3", "minimax:minimax-m3"),
        ("claude-opus-4.8", None),
        ("claude-opus-4-8-20260528", "anthropic:claude-opus-4-8"),
        ("GPT-5.5-2026-04-23", "openai:gpt-5.5"),
        ("together:MiniMaxAI/MiniMax-M3", "together:MiniMaxAI/MiniMax-M3"),
        ("openrouter:minimax/minimax-m3:batch", "openrouter:minimax/minimax-m3:batch"),
    ],
)
def test_names_of_models(name: str, entry: str | None) -> None:
    found = TABLE.find(name, WHEN)
    assert (found and found.id) == entry


def test_the_hosts_of_a_model_do_not_answer_for_its_maker() -> None:
    assert TABLE.find("MiniMaxAI/MiniMax-M3") is None
    with pytest.raises(ConfigError, match="minimax:minimax-m3"):
        TABLE.require("MiniMaxAI/MiniMax-M3")


def test_a_price_holds_from_its_day_on() -> None:
    def entry(since: date | None, base: str) -> PriceEntry:
        rates = {"input": Rate(Decimal(base)), "output": Rate(Decimal(base))}
        return PriceEntry("openai", "model", rates, since=since)

    table = PriceTable(date(2026, 12, 1), "test", (entry(date(2026, 11, 10), "2"), entry(None, "1")))
    usage = TokenUsage(input_tokens=1_000_000)
    for day, amount in ((9, 1), (10, 2), (30, 2)):
        priced = table.price("model", usage, datetime(2026, 11, day, tzinfo=timezone.utc))
        assert priced is not None
        assert priced.amount == amount
        assert priced.effective == (date(2026, 11, 10) if amount == 2 else date(2026, 12, 1))


def test_the_hash_names_the_prices() -> None:
    assert TABLE.hash == read_table(Path(__file__).parents[2] / "src/freehold/governance/cost/prices.json").hash
    body = json.loads(table_text(TABLE))
    body["entries"][7]["output"] = "0.01"
    changed = json.dumps(body)
    assert read_back(changed).hash != TABLE.hash


def read_back(text: str) -> PriceTable:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prices.json").write_text(text)
        return read_table(Path(folder) / "prices.json")


def test_the_shipped_table_is_what_the_package_says() -> None:
    genai_prices = pytest.importorskip("genai_prices")
    if genai_prices.__version__ != TABLE.source.split()[-1]:
        pytest.skip("another version of genai-prices is installed")
    assert table_of_package(TABLE.day) == TABLE


PRICED = [found for entry in TABLE.entries if (found := TABLE.find(entry.id, WHEN)) is not None]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_prices_are_those_of_the_package(data: st.DataObject) -> None:
    """Worked out by the package's own code, on whatever requests."""
    genai_prices = pytest.importorskip("genai_prices")
    from genai_prices.data import providers

    entry = data.draw(st.sampled_from(PRICED))
    cached = data.draw(st.integers(0, 600_000))
    written = data.draw(st.integers(0, 600_000))
    usage = TokenUsage(
        input_tokens=cached + written + data.draw(st.integers(0, 600_000)),
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=data.draw(st.integers(0, 200_000)),
    )
    provider = next(found for found in providers if found.id == entry.provider)
    model = next(found for found in provider.models if found.id == entry.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.calc_price(
            genai_prices.Usage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=cached,
                cache_write_tokens=written,
                output_tokens=usage.output_tokens,
            ),
            provider,
            genai_request_timestamp=WHEN,
        )
    assert entry.cost(usage) == theirs.total_price


OVERRIDES = """
[[price]]
provider = "minimax"
model = "minimax-m3"
input = "0.25"
cached = 0.05
output = { base = "1.00", over = [[512000, "2.00"]] }
source = "contract 17, annex B"
date = 2026-11-20

[[price]]
provider = "openai"
model = "house-model"
names = ["House"]
input = 1
output = "3"
source = "quote of 2026-11-21"
date = "2026-11-21"
"""


def test_overrides_take_the_place_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OVERRIDES)
    table = TABLE.with_overrides(path)
    priced = table.price("minimax-m3", TokenUsage(input_tokens=1000, cached_tokens=400, output_tokens=100))
    assert priced is not None
    # 600 x 0.25 + 400 x 0.05 + 100 x 1.00 = 150 + 20 + 100
    assert priced.amount == Decimal("0.00027")
    assert (priced.effective, priced.entry.source) == (date(2026, 11, 20), "contract 17, annex B")
    assert table.require("house").id == "openai:house-model"
    assert table.hash != TABLE.hash
    assert "2 entries of prices.toml" in table.source
    assert read_back(table_text(table)) == table


def test_a_providers_name_is_found_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OVERRIDES.replace('"minimax"', '"MiniMax"'))
    entry = TABLE.with_overrides(path).require("minimax-m3")
    assert (entry.id, entry.source) == ("minimax:minimax-m3", "contract 17, annex B")


def test_a_price_of_the_future_leaves_the_one_of_today(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OVERRIDES.replace("date = 2026-11-20", "date = 2026-11-20\nsince = 2027-01-01"))
    table = TABLE.with_overrides(path)
    today, then = table.find("minimax-m3", WHEN), table.find("minimax-m3", datetime(2027, 1, 2, tzinfo=timezone.utc))
    assert today == TABLE.find("minimax-m3", WHEN)
    assert then is not None
    assert then.source == "contract 17, annex B"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[price]]\nprovider = "x"', "lacks"),
        (OVERRIDES.replace("source =", "sauce ="), "lacks"),
        (OVERRIDES + "colour = 3", "unknown"),
        (OVERRIDES.replace('"0.25"', '"-1"'), "no price"),
        (OVERRIDES.replace('"0.25"', '"cheap"'), "entry 1"),
        (OVERRIDES.replace('"0.25"', "true"), "no price"),
        (OVERRIDES.replace('"2026-11-21"', '"today"'), "entry 2"),
        (OVERRIDES.replace('["House"]', '"House"'), "names is"),
        (OVERRIDES.replace('["House"]', "[5]"), "no name"),
        (OVERRIDES.replace('"openai"', "5"), "no name"),
        (OVERRIDES.replace("over =", "ovr ="), "no ovr"),
        (OVERRIDES.replace("[512000,", "[5.9,"), "whole number"),
        (OVERRIDES.replace("[512000,", "[0,"), "whole number"),
        (OVERRIDES.replace('[[512000, "2.00"]]', '[[5, "2.00"], [5, "3.00"]]'), "two tiers"),
        (OVERRIDES.replace('"0.25"', '"1e400000"'), "no price"),
        (OVERRIDES.replace('"0.25"', "1e-999999"), "no price"),
        ("price = 5", "begin with"),
        ("price = [5]", "begin with"),
        ("[price", "no TOML"),
        ("[[prices]]", "entries only"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TABLE.with_overrides(path)


def test_usage_that_cannot_be_is_refused() -> None:
    for wrong in (
        {"input_tokens": 5, "cached_tokens": 6},
        {"input_tokens": -1},
        {"input_tokens": 5, "cached_tokens": 3, "cache_write_tokens": 3},
        {"output_tokens": 2, "reasoning_tokens": 3},
    ):
        with pytest.raises(GovernanceError, match="cannot be"):
            TokenUsage(**wrong)

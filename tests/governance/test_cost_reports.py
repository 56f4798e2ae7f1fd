"""Reports add up what the records say, and comparisons price the same traffic anew; the sums are worked out by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from freehold.core.errors import ConfigError
from freehold.governance.cost.compare import compare
from freehold.governance.cost.hardware import Hardware, Machine, read_hardware
from freehold.governance.cost.prices import shipped_table
from freehold.governance.cost.report import cost_report
from freehold.governance.cost.text import comparison_text, dollars, report_text
from freehold.governance.cost.traffic import Period, Traffic, read_traffic
from freehold.governance.ledger.erase import erase
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.ledger import Ledger
from freehold.governance.ledger.record import LedgerRecord, RecordedPrice, TokenUsage, now_text
from freehold.governance.signing import SigningKey

TABLE = shipped_table()
NOON = datetime(2026, 11, 10, 12, 0, tzinfo=timezone.utc)
KEY = SigningKey.generate()
LATER = datetime(2027, 2, 1, tzinfo=timezone.utc)


def november(files: LedgerFiles) -> Traffic:
    """A whole month, read later."""
    return read_traffic(files, Period.month("2026-11"), now=LATER)


# A streamed answer; a cached one; one that its client left; one above the tier; one refused; one to an outside model.
USAGES = {
    "stream": TokenUsage(input_tokens=1000, output_tokens=500),
    "cached": TokenUsage(input_tokens=4000, cached_tokens=3000, output_tokens=200),
    "gone": TokenUsage(input_tokens=800, output_tokens=30, estimated=True),
    "long": TokenUsage(input_tokens=600_000, cached_tokens=100_000, output_tokens=1000),
    "outside": TokenUsage(input_tokens=300_000, output_tokens=1000),
    "unknown": TokenUsage(input_tokens=50, output_tokens=5),
}
# At MiniMax-M3's prices, in millionths of a dollar:
#   stream  1,000 x 0.30 + 500 x 1.20                         =       900
#   cached  1,000 x 0.30 + 3,000 x 0.06 + 200 x 1.20          =       720
#   gone    800 x 0.30 + 30 x 1.20                            =       276
#   long    500,000 x 0.60 + 100,000 x 0.12 + 1,000 x 2.40    =   314,400
M3 = {"stream": "0.0009", "cached": "0.00072", "gone": "0.000276", "long": "0.3144"}
# At GPT-5.5's, above 272,000: 300,000 x 10 + 1,000 x 45     = 3,045,000
OUTSIDE = "3.045"


def priced(name: str) -> RecordedPrice:
    if name == "unknown":
        return RecordedPrice("unpriced", None, None, TABLE.hash, "2026-11-29")
    if name == "outside":
        return RecordedPrice("charged", OUTSIDE, "openai:gpt-5.5", TABLE.hash, "2026-10-14")
    return RecordedPrice("list", M3[name], "minimax:minimax-m3", TABLE.hash, "2026-10-15", USAGES[name].estimated)


def traffic_records() -> list[LedgerRecord]:
    records = []
    for number, (name, usage) in enumerate(USAGES.items()):
        model = {"outside": "gpt-5.5", "unknown": "smollm2"}.get(name, "MiniMax-M3")
        records.append(
            LedgerRecord(
                id=name,
                time=now_text(NOON + timedelta(hours=number)),
                outcome="disconnected" if name == "gone" else "served",
                seconds=1800.0,
                model=model,
                endpoint="openai-eu" if name == "outside" else "local",
                usage=usage,
                price=priced(name),
            )
        )
    refused = LedgerRecord(id="no", time=now_text(NOON), outcome="refused", model_asked="MiniMax-M3", reason="budget")
    earlier = LedgerRecord(id="earlier", time="2026-10-01T00:00:00.000Z", outcome="refused")
    later = LedgerRecord(id="later", time="2026-12-01T00:00:00.000Z", outcome="served", model="MiniMax-M3")
    return [earlier, *records, refused, later]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LedgerFiles:
    path = tmp_path_factory.mktemp("cost") / "ledger"
    with Ledger(path, KEY) as ledger:
        for record in traffic_records():
            ledger.append(record).result(timeout=10)
    return LedgerFiles(path)


def test_recorded_prices_are_the_tables() -> None:
    """What the tests below add up is what the table says."""
    for name, amount in M3.items():
        found = TABLE.price("MiniMax-M3", USAGES[name])
        assert found is not None
        assert found.amount == Decimal(amount)
    outside = TABLE.price("gpt-5.5", USAGES["outside"])
    assert outside is not None
    assert outside.amount == Decimal(OUTSIDE)


def test_a_report_adds_up_a_month(files: LedgerFiles) -> None:
    report = cost_report(november(files))
    # 900 + 720 + 276 + 314,400 = 316,296
    assert report.total("list") == Decimal("0.316296")
    assert report.total("charged") == Decimal("3.045")
    assert report.unpriced == 1
    assert report.tables == (TABLE.hash,)
    assert len(report.traffic.requests) == 7
    lines = {(line.endpoint, line.model): line for line in report.lines}
    local = lines["local", "MiniMax-M3"]
    assert dict(local.outcomes) == {"served": 3, "disconnected": 1}
    # 1,000 + 4,000 + 800 + 600,000; 3,000 + 100,000; 500 + 200 + 30 + 1,000
    assert (local.input_tokens, local.cached_tokens, local.output_tokens) == (605_800, 103_000, 1730)
    assert (local.estimated, local.estimated_amounts) == (1, {"list": Decimal("0.000276")})
    assert lines["local", "smollm2"].unpriced == 1
    assert lines["local", "smollm2"].amounts == {}
    assert dict(lines["(none)", "MiniMax-M3"].outcomes) == {"refused": 1}
    assert report.body()["list_usd"] == "0.316296"


def test_months_end_where_the_next_begins(files: LedgerFiles) -> None:
    (only,) = read_traffic(files, Period.month("2026-12"), now=LATER).requests
    assert only.id == "later"
    assert Period.month("2026-12").end == datetime(2027, 1, 1, tzinfo=timezone.utc)
    assert Period.month("2026-11").hours == 720
    for wrong in ("9999-12", "9000-01", "2026-13", "2026-1", "november", "2026-11-01"):
        with pytest.raises(ConfigError, match="like 2026-11"):
            Period.month(wrong)


def test_a_comparison_prices_everything_anew(files: LedgerFiles) -> None:
    traffic = november(files)
    m3, opus, gpt = compare(traffic, TABLE, ["minimax-m3", "claude-opus-4-8", "gpt-5.5"], None).alternatives
    # M3: 316,296 + outside 300,000 x 0.30 + 1,000 x 1.20 = 91,200 + unknown 50 x 0.30 + 5 x 1.20 = 21
    assert m3.amount == Decimal("0.407517")
    # without a cache: 900, 4,000 x 0.30 + 240 = 1,440, 276, 600,000 x 0.60 + 2,400 = 362,400, 91,200, 21
    assert m3.uncached == Decimal("0.456237")
    # Opus: input 905,850 - 103,000 cached = 802,850 x 5 + 103,000 x 0.50 + output 2,735 x 25
    #     = 4,014,250 + 51,500 + 68,375
    assert opus.amount == Decimal("4.134125")
    assert opus.uncached == Decimal("4.597625")  # 905,850 x 5 + 68,375
    # GPT-5.5: stream 5,000 + 15,000; cached 5,000 + 1,500 + 6,000; gone 4,000 + 900;
    #     long 500,000 x 10 + 100,000 x 1 + 45,000; outside 3,045,000; unknown 250 + 150
    assert gpt.amount == Decimal("8.227800")


def test_busy_time_is_counted_once(files: LedgerFiles) -> None:
    # Half an hour each: "stream" ends at 12, "cached" at 13, "gone" at 14, "long" at 15, "unknown" at 17; the one at
    # 16 was answered elsewhere.
    assert november(files).busy_hours == Decimal("2.5")


def test_requests_at_once_share_busy_time(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", KEY) as ledger:
        for number, (minute, seconds) in enumerate([(30, 1800.0), (20, 300.0), (40, 1200.0), (59, 60.0)]):
            record = LedgerRecord(
                id=str(number),
                time=now_text(NOON + timedelta(minutes=minute)),
                outcome="served",
                seconds=seconds,
                endpoint="local",
                usage=TokenUsage(input_tokens=1),
            )
            ledger.append(record).result(timeout=10)
    traffic = read_traffic(LedgerFiles(tmp_path / "ledger"), None)
    # 12:00 to 12:30, within it 12:15 to 12:20, 12:20 to 12:40, 12:58 to 12:59: 41 minutes
    assert traffic.busy_hours == Decimal("2460") / 3600
    assert traffic.period == Period(NOON, NOON + timedelta(minutes=59))


HARDWARE = Hardware(
    (Machine("box", Decimal(87660), Decimal(5), Decimal(3000), Decimal(1000), count=2, residual=Decimal(43830)),),
    price_per_kwh=Decimal("0.25"),
    overhead=Decimal("1.2"),
    per_month=Decimal("730.5"),
)


def test_own_hardware_by_hand() -> None:
    cost = HARDWARE.cost(Decimal(100), Decimal(20))
    # 2 x (87,660 - 43,830) over 5 x 8,766 hours = 2 x 1 dollar an hour
    assert cost.amortisation == 200
    # 730.5 for 730.5 hours
    assert cost.operation == 100
    # 2 x 1 kW x 100 h x 1.2 x 0.25; 2 x 2 kW x 20 h x 1.2 x 0.25
    assert cost.energy_idle == 60
    assert cost.energy_busy == 24
    assert (cost.total, cost.fixed) == (384, 360)


def test_break_even_is_where_both_cost_the_same(files: LedgerFiles) -> None:
    traffic = november(files)
    found = compare(traffic, TABLE, ["minimax-m3", "gpt-5.5"], HARDWARE)
    assert found.here is not None
    assert found.here.utilisation == Decimal("2.5") / 720
    months = Decimal(720) / Decimal("730.5")
    for alternative, even in zip(found.alternatives, found.break_even, strict=True):
        if even.load is None:
            continue
        busy = even.load * Decimal("2.5") / months
        here = HARDWARE.cost(Decimal("730.5"), busy).total
        assert abs(here - even.load * alternative.own / months) < Decimal("1e-15")
    m3, gpt = found.break_even
    # The power of a busy hour, 2 x 2 kW x 1.2 x 0.25 = 1.20 dollars, is dearer than M3's tokens of that hour.
    assert m3.load is None
    assert not m3.reachable
    # fixed: 730.5 x 2 + 730.5 + 2 x 730.5 x 0.3 = 2,629.8 a month; gained: (8.2278 - 3.045 elsewhere - 3.0) / months
    assert gpt.load is not None
    assert abs(gpt.load - Decimal("2629.8") / ((Decimal("5.1828") - 3) / months)) < Decimal("1e-20")
    # 4.2 times the hours there are; 605,850 + 1,735 tokens were computed here
    assert gpt.tokens_per_month is not None
    assert abs(gpt.tokens_per_month - gpt.load * 607_585 / months) < Decimal("1e-15")
    assert not gpt.reachable


def test_a_reachable_break_even(files: LedgerFiles) -> None:
    cheap = Hardware((Machine("box", Decimal(1000), Decimal(5), Decimal(200), Decimal(50)),), Decimal("0.2"))
    (even,) = compare(november(files), TABLE, ["gpt-5.5"], cheap).break_even
    assert even.load is not None
    assert even.reachable
    # fixed: 1,000 / 60 months + 0.05 kW x 730.5 h x 0.2 = 16.6667 + 7.305
    # gained: 5.1828 / months - 0.15 kW x 2.5 h / months x 0.2 = 5.1823
    assert Decimal("4.62") < even.load < Decimal("4.63")


def test_what_was_answered_elsewhere_moves_no_break_even(files: LedgerFiles) -> None:
    everything = compare(november(files), TABLE, ["gpt-5.5"], HARDWARE)
    here = read_traffic(files, Period.month("2026-11"), lambda record: record.endpoint == "local", LATER)
    own = compare(here, TABLE, ["gpt-5.5"], HARDWARE)
    assert everything.break_even == own.break_even
    assert everything.alternatives[0].amount > own.alternatives[0].amount == own.alternatives[0].own
    assert everything.notes == ["1 of the requests were answered elsewhere; break-even counts the others only"]
    assert own.notes == []


def test_a_period_is_no_longer_than_the_ledger_can_tell(files: LedgerFiles, tmp_path: Path) -> None:
    noon = datetime(2026, 11, 10, 12, 30, tzinfo=timezone.utc)
    running = read_traffic(files, Period.month("2026-11"), now=noon)
    assert running.period == Period(datetime(2026, 11, 1, tzinfo=timezone.utc), noon)
    assert running.notes == ("2026-11 is not over, so that only the time until now counts",)
    with pytest.raises(ConfigError, match="2026-12 has not begun"):
        read_traffic(files, Period.month("2026-12"), now=noon)
    with Ledger(tmp_path / "ledger", KEY) as ledger:
        for record in traffic_records()[1:]:
            ledger.append(record).result(timeout=10)
    begun = november(LedgerFiles(tmp_path / "ledger"))
    assert begun.period.begin == NOON - timedelta(minutes=30)
    assert begun.notes == ("the ledger began at 2026-11-10 11:30 UTC, so that only the time since then counts",)
    short = compare(read_traffic(files, None, lambda record: record.id == "long"), TABLE, ["gpt-5.5"], HARDWARE)
    assert short.notes == ["the period has 0.50 hours; what is said of a month is extrapolated from it"]


def test_without_load_nothing_is_said_of_the_power(files: LedgerFiles) -> None:
    nothing = read_traffic(files, Period.month("2026-11"), lambda _record: False, LATER)
    text = comparison_text(compare(nothing, TABLE, ["gpt-5.5"], HARDWARE))
    assert "not known: no request with tokens was answered here" in text
    assert "power alone" not in text


def one_record_each(path: Path, *records: LedgerRecord) -> LedgerFiles:
    with Ledger(path, KEY) as ledger:
        for record in records:
            ledger.append(record).result(timeout=10)
    return LedgerFiles(path)


def test_what_has_no_price_is_null(files: LedgerFiles, tmp_path: Path) -> None:
    lines = {
        line["model"]: line for line in cost_report(november(files)).body()["lines"] if line["endpoint"] != "(none)"
    }
    assert (lines["smollm2"]["charged_usd"], lines["smollm2"]["list_usd"]) == (None, None)
    assert (lines["MiniMax-M3"]["charged_usd"], lines["MiniMax-M3"]["list_usd"]) == ("0", "0.316296")
    alone = cost_report(read_traffic(one_record_each(tmp_path / "ledger", traffic_records()[6]), None))
    assert (alone.body()["charged_usd"], alone.body()["list_usd"]) == (None, None)
    assert report_text(alone).count("unpriced") == 4


def test_estimates_of_two_kinds_are_not_added_up(tmp_path: Path) -> None:
    usage = TokenUsage(input_tokens=10, estimated=True)
    records = [
        LedgerRecord(
            id=basis,
            time=now_text(NOON),
            outcome="aborted",
            model="m",
            endpoint="e",
            usage=usage,
            price=RecordedPrice(basis, amount, "a:m", TABLE.hash, "2026-11-29", True),  # type: ignore[arg-type]
        )
        for basis, amount in (("charged", "7"), ("list", "5"))
    ]
    report = cost_report(read_traffic(one_record_each(tmp_path / "ledger", *records), None))
    assert "(charged $7.0000, list $5.0000)" in report_text(report)
    (line,) = report.body()["lines"]
    assert (line["estimated_charged_usd"], line["estimated_list_usd"]) == ("7", "5")


def test_small_amounts_are_not_nothing() -> None:
    assert [dollars(Decimal(text)) for text in ("0", "0.00000504", "0.0001", "9.99995", "1234.5")] == [
        "0.00",
        "<0.0001",
        "0.0001",
        "10.0000",
        "1,234.50",
    ]


def test_what_writing_to_a_cache_costs_is_told(files: LedgerFiles, tmp_path: Path) -> None:
    assert "nothing for writing to a cache" in comparison_text(compare(november(files), TABLE, ["gpt-5.5"], None))
    usage = TokenUsage(input_tokens=1000, cache_write_tokens=600)
    record = LedgerRecord(id="a", time=now_text(NOON), outcome="served", endpoint="e", usage=usage)
    found = compare(read_traffic(one_record_each(tmp_path / "ledger", record), None), TABLE, ["claude-opus-4-8"], None)
    # 400 x 5 + 600 x 6.25
    assert found.alternatives[0].amount == Decimal("0.00575")
    assert "600 written to one at the price for that" in comparison_text(found)


def test_erased_records_are_told(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", KEY) as ledger:
        for record in traffic_records():
            ledger.append(record).result(timeout=10)
    files = LedgerFiles(tmp_path / "ledger")
    erase(files, KEY, [1, 2], "records", "")
    report = cost_report(november(files))
    assert report.traffic.erased == 2
    assert report.total("list") == Decimal("0.314676")  # 316,296 - 900 - 720


HARDWARE_FILE = """
[[machine]]
name = "box"
count = 2
price = 87660
residual = 43830
years = 5
watts_busy = 3000
watts_idle = 1000

[power]
price_per_kwh = 0.25
overhead = 1.2

[operation]
per_month = 730.5
"""


def test_hardware_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "hardware.toml"
    path.write_text(HARDWARE_FILE)
    assert read_hardware(path) == HARDWARE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("watts_idle = 1000", "watts_idle = 4000", "no less power"),
        ("years = 5", "years = 0", "above 0"),
        ("count = 2", "count = 0", "above 0"),
        ("price = 87660", 'price = "much"', "price is 'much'"),
        ("price = 87660", "prize = 87660", "unknown: prize"),
        ("price_per_kwh = 0.25", "", "lacks price_per_kwh"),
        ("overhead = 1.2", "overhead = 0.5", "at least"),
        ("[operation]", "[operations]", "unknown: operations"),
        ("[[machine]]", "[[machine", "no TOML"),
        ("price_per_kwh = 0.25", "price_per_kwh = -1", "not negative"),
        ("price_per_kwh = 0.25", "price_per_kwh = nan", "not negative"),
        ("price_per_kwh = 0.25", "price_per_kwh = 1e999999", "no more than"),
        ("years = 5", "years = 1e-999999", "at least 0.01"),
        ("count = 2", f"count = {10**400}", "above 0"),
        ("price = 87660", "price = 1e400000", "no more than"),
    ],
)
def test_wrong_hardware_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "hardware.toml"
    path.write_text(HARDWARE_FILE.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_hardware(path)


@pytest.mark.parametrize("text", ["machine = 5", "machine = []", "machine = [5]", 'machine = "box"'])
def test_hardware_without_machines_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hardware.toml"
    path.write_text(f"{text}\n[power]\nprice_per_kwh = 0.2\n")
    with pytest.raises(ConfigError, match="machine"):
        read_hardware(path)

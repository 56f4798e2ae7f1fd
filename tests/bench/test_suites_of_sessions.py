"""The suites of streams, restarts and long sessions, at sizes that take seconds: do figures mean what they say?"""

from __future__ import annotations

import pytest

from freehold.bench import suite_long, suite_restart, suite_streams
from freehold.bench.suite_long import LongSettings
from freehold.bench.suite_restart import RestartSettings
from freehold.bench.suite_streams import StreamSettings
from freehold.bench.timeline import Timeline, Timing
from freehold.core.errors import ArgumentError, FreeholdError
from support.counting_model import counting_engine
from support.tiny_engine import random_tokens


def quiet(_line: str) -> None:
    """Says nothing."""


def test_a_timeline_has_every_token_and_chunk_of_a_request():
    engine = counting_engine(prefill_chunk=16)
    timeline = Timeline(engine)
    one, other = timeline.submit(random_tokens(40, seed=1), 5), timeline.submit(random_tokens(20, seed=2), 3)
    timeline.run()
    assert (len(one.tokens), len(other.tokens)) == (5, 3)
    assert one.prefill[-1][0] == 40
    assert [done for done, _ in one.prefill] == sorted({done for done, _ in one.prefill})
    assert one.tokens == sorted(one.tokens)
    assert one.first_token_seconds == one.tokens[0] - one.submitted


def test_gaps_lie_between_tokens_inside_the_window():
    timing = Timing(0.0, 1, tokens=[1.0, 2.0, 4.0, 8.0])
    assert timing.gaps() == [1.0, 2.0, 4.0]
    assert timing.gaps(1.5, 4.5) == [2.0]


def test_a_request_without_a_token_has_no_first_one():
    with pytest.raises(FreeholdError, match="without a token"):
        _ = Timing(0.0, 1).first_token_seconds


def test_streams_together_and_beside_a_long_prompt():
    settings = StreamSettings(None, streams=3, prompt=24, answer=16, long_prompt=600, threads=1, rounds=1)
    data = suite_streams.run(settings, quiet).data
    rates = data["tokens_per_second"]
    assert rates["ratio_of_medians"] == pytest.approx(rates["many"][0] / rates["one"][0])
    assert data["p95_ratio"] == pytest.approx(data["p95_seconds"]["beside_prompt"] / data["p95_seconds"]["undisturbed"])
    assert data["longest_gap_seconds"] >= data["p95_seconds"]["beside_prompt"] * 0.5


@pytest.mark.parametrize("field", ["streams", "prompt", "long_prompt", "rounds"])
def test_numbers_of_streams_start_at_one(field):
    usual = {"streams": 1, "prompt": 1, "answer": 16, "long_prompt": 1, "threads": 1, "rounds": 1}
    with pytest.raises(ArgumentError, match=f"{field} is 0"):
        StreamSettings(None, **{**usual, field: 0})


def test_a_restart_finds_all_full_blocks_and_answers_the_same(tmp_path):
    settings = RestartSettings(context=700, threads=1, store_dir=str(tmp_path))
    data = suite_restart.run(settings, quiet).data
    assert [restart["cached_tokens"] for restart in data["restarts"]] == [5 * 128, 5 * 128]


def test_a_long_session_is_read_once_and_answers_the_same_from_the_disk(monkeypatch):
    monkeypatch.setattr(suite_long, "_WINDOW", 512)
    settings = LongSettings((1024, 9000), ram_budget=64 * 2 * 2 * 128 * 128 * 2 * 4, threads=1)
    report = suite_long.run(settings, quiet)
    assert [row["context"] for row in report.data["rows"]] == [1024, 9000]
    assert report.data["kv_bytes"] == 9000 * 2 * 2 * 128 * 2 * 4
    assert all(row[name] > 0 for row in report.data["rows"] for name in ("window_rate", "paged", "restarted", "in_ram"))


@pytest.mark.parametrize("contexts", [(30000, 20000), (20000, 20000), (100,)])
def test_contexts_of_long_sessions_ascend_and_hold_a_window(contexts):
    with pytest.raises(ArgumentError, match="context"):
        LongSettings(contexts, ram_budget=1, threads=1)

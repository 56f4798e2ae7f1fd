"""`freehold bench sessions`: the shapes have the lengths they claim, and nothing in them is computed twice."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from freehold.bench.main import sessions
from freehold.bench.random_m3 import BENCH_M3
from freehold.bench.replay import Ledger, next_call
from freehold.bench.session_shape import Call, Session, forks, published_session, random_prefix, tool_calls
from freehold.bench.suite_sessions import SessionSettings, latency_figures
from freehold.cache import BlockCache
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.engine.scheduler import Scheduler

VOCAB = BENCH_M3.vocab_size


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(sessions, ["--quick", "--threads", "1", *arguments])


def rows_of(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    report = json.loads(done.stdout)
    assert report.keys() == set("suite schema machine settings rows peak_memory_bytes notes".split())
    rows: list[dict[str, Any]] = report["rows"]
    return rows


def calls_of(session: Session) -> list[tuple[list[int], int]]:
    """Prompt and answer length of each call of a session whose answers are all zeros."""
    found = []
    call: Call | None = next(session)
    while call is not None:
        found.append((list(call.prompt), call.answer_tokens))
        call = next_call(session, [0] * call.answer_tokens)
    return found


def test_an_agent_session_has_the_published_averages() -> None:
    calls = calls_of(published_session(3, VOCAB))
    assert len(calls) == 84
    ledger, total, fresh = Ledger(), 0, 0
    for prompt, answer in calls:
        total += len(prompt)
        fresh += ledger.add(prompt)
        ledger.add([*prompt, *[0] * answer])
        assert answer == 523
    assert total / 84 == pytest.approx(153_700, rel=0.02)
    assert fresh / 84 == pytest.approx(6_440, rel=0.01)
    assert 1 - fresh / total == pytest.approx(0.958, abs=0.001)


def test_a_scaled_session_keeps_its_proportions() -> None:
    large, small = calls_of(published_session(3, VOCAB)), calls_of(published_session(3, VOCAB, scale=1 / 64))
    # Each step rounds two counts, the new and the generated tokens: by half a token each.
    for step, ((long, _), (short, _)) in enumerate(zip(large, small, strict=True)):
        assert len(short) == pytest.approx(len(long) / 64, abs=step + 1)


def test_tool_calls_send_the_whole_history() -> None:
    calls = calls_of(tool_calls(0, VOCAB, calls=50, prefix=[7, 8]))
    history: list[int] = [7, 8]
    for prompt, answer in calls:
        assert prompt[: len(history)] == history
        assert 20 <= len(prompt) - len(history) <= 40
        assert answer == 20
        history = prompt + [0] * answer


def test_forks_have_exactly_the_prefix_in_common() -> None:
    prefix = random_prefix(1, VOCAB, 100)
    prompts = [next(session).prompt for session in forks(prefix, 4, VOCAB, calls=1)]
    assert all(prompt[:100] == prefix for prompt in prompts)
    assert len({prompt[100] for prompt in prompts}) == 4


def test_the_ledger_counts_tokens_after_the_longest_known_beginning() -> None:
    ledger = Ledger()
    sent = [[1, 2, 3], [1, 2, 3, 4], [1, 2], [1, 2, 9], [1, 2, 3, 4, 5], [1, 2, 9, 9], [2], [1, 2, 3, 4, 5]]
    assert [ledger.add(tokens) for tokens in sent] == [3, 1, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(("shape", "calls"), [("published", 12), ("calls", 12), ("forks", 2)])
def test_every_token_of_a_session_is_computed_once(shape: str, calls: int) -> None:
    for row in rows_of(bench("--shape", shape, "--calls", str(calls), "--json")):
        assert row["computed_tokens"] == row["new_tokens"]
        assert row["recomputed"] == 1.0
        assert row["calls"] == len(row["call_seconds"])
        if shape == "forks":
            assert row["prefix_computed_tokens"] == row["prefix_tokens"] == 1024


def test_the_ratio_shows_what_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockCache, "adopt", lambda cache, sequence: 0)  # nothing is found
    (row,) = rows_of(bench("--calls", "4", "--no-store", "--json"))
    assert row["hit_tokens"] == 0
    assert row["computed_tokens"] == row["prompt_tokens"] + row["answer_tokens"] - row["calls"]
    assert row["recomputed"] == row["computed_tokens"] / row["new_tokens"] > 2


def test_the_prefix_of_forks_shows_what_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    find = BlockCache.next_block
    monkeypatch.setattr(BlockCache, "next_block", lambda cache, s: (s, find(cache, s)))  # nobody waits for another
    first, at_once = rows_of(bench("--shape", "forks", "--prefix", "512", "--json"))
    assert first["prefix_computed_tokens"] == 512
    assert at_once["prefix_computed_tokens"] > 512


def test_an_earlier_runs_blocks_are_not_computed_again(tmp_path: Path) -> None:
    arguments = ("--store-dir", str(tmp_path / "store"), "--calls", "10", "--json")
    (fresh,), (again,) = rows_of(bench(*arguments)), rows_of(bench(*arguments))
    assert fresh["written_bytes"] > 0
    assert fresh["restored_tokens"] == 0
    blocks = again["restored_tokens"] // 128
    assert blocks >= 3
    assert again["recomputed"] < 1
    assert again["read_bytes"] > 0


def test_the_temporary_store_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows_of(bench("--calls", "2", "--json"))
    assert not list(tmp_path.iterdir())


def test_a_call_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    observe = Scheduler.observe

    def cancel_all(scheduler: Scheduler, *arguments: Any) -> None:
        observe(scheduler, *arguments)
        for request in scheduler:
            request.cancelled = True

    monkeypatch.setattr(Scheduler, "observe", cancel_all)
    done = bench("--calls", "2", "--no-store")
    assert isinstance(done.exception, FreeholdError)
    assert "ended with 'cancelled' after 1 of 20 tokens" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "calls", "scale": 0.5}, "--scale is for --shape published"),
        ({"shape": "published", "prefix": 5}, "--prefix is for --shape forks"),
        ({"shape": "forks", "sessions": 5}, "--sessions is for --shape published"),
        ({"shape": "loops"}, "must be one of published, calls, forks"),
        ({"shape": "calls", "store": False, "store_dir": "x"}, "exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SessionSettings(threads=1, **options)


def test_latencies_of_early_and_late_calls() -> None:
    seconds = [float(n) for n in range(500)]
    assert latency_figures(seconds) == {
        "first_tenth": 24.5,
        "last_tenth": 474.5,
        "early": 249.5,
        "late": 449.5,
        "late_to_early": 449.5 / 249.5,
    }
    few = latency_figures(seconds[:5])
    assert few == {"first_tenth": 0.0, "last_tenth": 4.0, "early": None, "late": None, "late_to_early": None}


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = bench("--calls", "2", "--no-store", "--plot", str(tmp_path / "latency.png"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")

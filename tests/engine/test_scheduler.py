"""Who is served when, and what for: by a model that only counts."""

from __future__ import annotations

import pytest

from freehold.core.errors import BusyError, ConfigError
from freehold.core.events import FinishEvent, Miss, TokenEvent
from freehold.core.sampling import SamplingParams
from support.counting_model import counting_engine
from support.tiny_engine import random_tokens

BLOCK = 16
SHORT = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)


def ask(engine, length: int, *, seed: int, answer: int = 2, **who) -> str:
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
    return engine.submit(random_tokens(length, seed=seed), params, **who)


def finished(engine, steps: int = 100_000) -> list[str]:
    """Runs to the end, or for so many steps; ids in the order in which requests ended."""
    ended = []
    for _ in range(steps):
        if not engine.busy:
            break
        ended += [e.request_id for e in engine.step() if isinstance(e, FinishEvent)]
        engine.cache.check_integrity()
    return ended


def prefilled(engine, request_id: str) -> int:
    """Tokens of a request that are in the cache."""
    sequence = engine._requests[request_id].sequence
    return 0 if sequence is None else sequence.num_computed


# --- between clients ----------------------------------------------------------------------------------------


def test_many_prompts_of_one_client_do_not_hold_up_another():
    engine = counting_engine(max_running=2, prefill_chunk=64)
    many = [ask(engine, 200, seed=s, client="many") for s in range(20)]
    engine.step()
    one = ask(engine, 200, seed=99, client="one")
    order = finished(engine)
    assert order.index(one) <= 2  # after the two that run already
    assert [r for r in order if r != one] == many  # and within a client, first come first served


@pytest.mark.parametrize("outer", [(), ("key",)])
def test_who_has_fewer_names_goes_first_no_more_often(outer):
    engine = counting_engine(max_running=1, prefill_chunk=512)
    many = [ask(engine, 200, seed=s, client=outer) for s in range(24)]
    few = [ask(engine, 200, seed=30 + s, client=(*outer, "user")) for s in range(4)]
    order = finished(engine)
    assert max(order.index(request) for request in few) < order.index(many[8])


def test_clients_take_turns_by_what_they_had():
    engine = counting_engine(max_running=1, prefill_chunk=512)
    big = [ask(engine, 400, seed=s, client="big") for s in range(8)]
    small = [ask(engine, 100, seed=10 + s, client="small") for s in range(32)]
    order = finished(engine)
    # By then "big" has had 3,200 tokens. One start in four goes by age, and all of its requests are older.
    assert 18 <= sum(order.index(request) < order.index(big[-1]) for request in small) <= 32


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = counting_engine(prefill_chunk=64)
    long = ask(engine, 20_000, seed=1)
    engine.step()
    short = ask(engine, 50, seed=2)
    assert finished(engine, 4) == [short]
    assert long in engine._requests


def test_a_long_prompt_goes_on_however_many_short_ones_come():
    engine = counting_engine(prefill_chunk=64)
    long = ask(engine, 3000, seed=1, client="long")
    for step in range(400):
        ask(engine, 64, seed=10 + step, answer=1, client=f"short {step}")
        engine.step()
    assert long not in engine._requests


def test_a_request_waits_for_a_bounded_number_of_newcomers():
    engine = counting_engine(max_running=1, prefill_chunk=512)
    rich = [ask(engine, 500, seed=s, answer=1, client="rich") for s in range(2)]
    ended = []
    for step in range(10):
        ask(engine, 100, seed=10 + step, answer=1, client=f"new {step}")
        ended += finished(engine, 1)
    assert set(rich) < set(ended)


def test_a_long_prompt_goes_on_in_the_smallest_chunks():
    engine = counting_engine(prefill_chunk=1)
    long = ask(engine, 200, seed=1)
    for step in range(60):
        ask(engine, 5, seed=10 + step, answer=1)
        engine.step()
    assert prefilled(engine, long) >= 60


# --- between priorities -------------------------------------------------------------------------------------


def test_the_lower_number_starts_first():
    engine = counting_engine(max_running=1)
    first = ask(engine, 20, seed=0, priority=3)
    engine.step()
    later, middle, sooner = (ask(engine, 20, seed=1 + p, priority=p) for p in (9, 4, 3))
    assert finished(engine) == [first, sooner, middle, later]


def test_the_more_important_prompt_is_read_first():
    engine = counting_engine(prefill_chunk=64)
    ask(engine, 100, seed=1, priority=1)
    important = ask(engine, 1000, seed=2, priority=0)
    assert finished(engine)[0] == important


def test_when_places_are_short_the_least_important_youngest_gives_way():
    engine = counting_engine(max_running=3)
    kept, older, younger = (ask(engine, 20, seed=s, answer=40, priority=p) for s, p in ((1, 0), (2, 5), (3, 5)))
    engine.step()
    ask(engine, 20, seed=4, answer=40, priority=1)
    engine.step()
    running = {r.request_id for r in engine.scheduler.running}
    assert {kept, older} < running
    assert younger not in running
    assert len(finished(engine)) == 4


def test_equal_importance_takes_no_place():
    engine = counting_engine(max_running=1)
    first = ask(engine, 20, seed=1, answer=40)
    engine.step()
    second = ask(engine, 20, seed=2)
    assert finished(engine) == [first, second]


def test_when_blocks_are_short_the_least_important_youngest_gives_way():
    # Each grows to 6 blocks of the 16 there are.
    engine = counting_engine(cache_tokens=16 * BLOCK, max_running=4)
    ids = {p: ask(engine, 40, seed=p, answer=56, priority=p) for p in (2, 0, 1)}
    order = finished(engine)
    assert order.index(ids[2]) == 2
    assert engine.model.num_tokens > 3 * 96  # it happened: something was computed again


def test_nothing_is_paused_for_a_request_that_would_not_fit_all_the_same():
    engine = counting_engine(cache_tokens=16 * BLOCK, prefill_chunk=512)
    ask(engine, 9 * BLOCK, seed=1, answer=60, priority=0)
    humble = ask(engine, 2 * BLOCK, seed=2, answer=60, priority=5)
    engine.step()
    ask(engine, 10 * BLOCK, seed=3, priority=0)
    engine.step()
    assert humble in {r.request_id for r in engine.scheduler.running}
    assert len(finished(engine)) == 3


# --- room ---------------------------------------------------------------------------------------------------


def test_what_has_no_room_lets_others_pass_but_not_for_ever():
    engine = counting_engine(cache_tokens=32 * BLOCK, max_running=4, prefill_chunk=512)
    occupant = ask(engine, 20 * BLOCK, seed=1, answer=150)
    engine.step()
    large = ask(engine, 20 * BLOCK, seed=2)
    small = [ask(engine, BLOCK, seed=10 + s) for s in range(30)]
    order = finished(engine)
    assert order.index(small[0]) < order.index(occupant)
    assert order.index(large) == 17 + 1 - 1  # 16 passed it, and the occupant ended
    assert len(order) == 32


def test_a_common_prefix_takes_room_once():
    engine = counting_engine(cache_tokens=32 * BLOCK, prefill_chunk=512)
    prefix = random_tokens(20 * BLOCK, seed=1)
    for tail in range(4):
        engine.submit([*prefix, tail + 1], SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert len(engine.scheduler.running) == 4
    assert len(finished(engine)) == 4
    assert engine.model.num_tokens == 20 * BLOCK + 4 * 20


# --- common prefixes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 16, 100, 512])
@pytest.mark.parametrize("number", [2, 8])
def test_a_common_prefix_is_computed_once(number, chunk):
    engine = counting_engine(prefill_chunk=chunk)
    prefix = random_tokens(40 * BLOCK, seed=1)
    for s in range(number):
        engine.submit([*prefix, *random_tokens(30, seed=10 + s)], SHORT, client=str(s))
    assert len(finished(engine)) == number
    # The prefix, the tails, and one token fed back for each.
    assert engine.model.num_tokens == 40 * BLOCK + number * (30 + 1)


def test_a_prompt_that_is_the_beginning_of_another_is_computed_with_it():
    engine = counting_engine(prefill_chunk=32)
    tokens = random_tokens(20 * BLOCK, seed=1)
    engine.submit(tokens, SHORT)
    engine.submit(tokens[: 10 * BLOCK + 5], SHORT)
    finished(engine)
    assert engine.model.num_tokens <= 20 * BLOCK + BLOCK + 2


def test_found_tokens_are_those_that_another_request_computed_meanwhile():
    engine = counting_engine(prefill_chunk=32)
    prefix = random_tokens(10 * BLOCK, seed=1)
    ids = [engine.submit([*prefix, s + 1, s + 2], SHORT) for s in range(2)]
    usage = {}
    while engine.busy:
        usage |= {e.request_id: e.usage for e in engine.step() if isinstance(e, FinishEvent)}
    assert [usage[i].cached_tokens for i in ids] == [0, 10 * BLOCK]


def test_who_waits_for_a_cancelled_prefix_goes_on_by_itself():
    engine = counting_engine(prefill_chunk=32)
    prefix = random_tokens(40 * BLOCK, seed=1)
    first, second = (engine.submit([*prefix, s + 1], SHORT, client=str(s)) for s in range(2))
    for _ in range(5):
        engine.step()
    engine.cancel(first)
    assert finished(engine) == [first, second]
    assert engine.model.num_tokens == 40 * BLOCK + 1 + 1


def test_an_important_request_does_not_wait_for_the_turn_of_who_computes_its_prefix():
    engine = counting_engine(prefill_chunk=64)
    prefix = random_tokens(10 * BLOCK, seed=1)
    humble = engine.submit([*prefix, *random_tokens(3000, seed=2)], SHORT, priority=9)
    engine.step()
    ask(engine, 5000, seed=3, priority=5)
    engine.submit([*prefix, 1], SHORT, priority=0)
    before = engine.model.num_tokens
    while not any(isinstance(e, TokenEvent) for e in engine.step()):
        pass
    assert engine.model.num_tokens - before <= 4 * 64
    assert humble in engine._requests


# --- limits -------------------------------------------------------------------------------------------------


def test_a_request_ends_when_its_time_is_up_and_what_was_computed_stays():
    engine = counting_engine(timeout_seconds=10, prefill_chunk=32)
    waiting = ask(engine, 1000, seed=1)
    events = [e for _ in range(12) if engine.busy for e in engine.step()]
    assert [(e.request_id, e.reason) for e in events if isinstance(e, FinishEvent)] == [(waiting, "timeout")]
    assert "10 seconds" in events[-1].error
    assert not engine.busy
    engine.cache.check_integrity()
    before = engine.model.num_tokens
    assert before == 320
    ask(engine, 1000, seed=1)
    engine.step()
    assert engine.scheduler.running[0].cached_tokens == 320


def test_the_time_limit_counts_the_queue():
    engine = counting_engine(timeout_seconds=5, max_running=1)
    ask(engine, 10, seed=1, answer=100)
    waiting = ask(engine, 10, seed=2)
    reasons = {}
    while engine.busy:
        reasons |= {e.request_id: e.reason for e in engine.step() if isinstance(e, FinishEvent)}
    assert reasons[waiting] == "timeout"


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "5"])
def test_a_time_limit_is_a_positive_number(value):
    with pytest.raises(ConfigError, match="timeout_seconds"):
        counting_engine(timeout_seconds=value)


def test_prompts_beyond_what_the_queue_holds_are_refused_but_not_a_lone_one():
    engine = counting_engine(max_prompt_tokens=1000)
    first = ask(engine, 1500, seed=1)
    with pytest.raises(
        BusyError, match=r"the prompt has 20 tokens, those of other requests 1500; together at most 1000"
    ):
        ask(engine, 20, seed=2)
    assert finished(engine) == [first]
    ask(engine, 600, seed=3)
    ask(engine, 400, seed=4)
    with pytest.raises(BusyError):
        ask(engine, 1, seed=5)


def test_a_refusal_says_how_long_the_queue_will_take():
    """Prompts at 10 ms a token, answers of 20 tokens at 0.1 s a step."""
    engine = counting_engine(
        lambda pieces: sum(0.01 * n for _, n in pieces if n > 1) + 0.1 * any(n == 1 for _, n in pieces),
        max_waiting=3,
        max_running=1,
    )
    ask(engine, 500, seed=1, answer=21)
    finished(engine)
    for s in range(3):
        ask(engine, 1000, seed=2 + s, answer=21)
    with pytest.raises(BusyError, match="3 requests are waiting already; try again in about") as refused:
        ask(engine, 1000, seed=9)
    began = engine._clock()
    finished(engine)
    assert refused.value.retry_seconds == pytest.approx(engine._clock() - began, rel=0.1)


def test_the_time_to_wait_is_between_a_second_and_ten_minutes():
    for cost, seconds in ((0.0001, 1.0), (100.0, 600.0)):
        engine = counting_engine(lambda pieces, cost=cost: cost, max_waiting=1)
        ask(engine, 600, seed=1)
        finished(engine)
        ask(engine, 20_000, seed=2)
        with pytest.raises(BusyError) as refused:
            ask(engine, 10, seed=3)
        assert refused.value.retry_seconds == seconds


def test_before_anything_was_measured_a_refusal_promises_nothing_long():
    engine = counting_engine(max_waiting=1)
    ask(engine, 20_000, seed=2)
    with pytest.raises(BusyError) as refused:
        ask(engine, 10, seed=3)
    assert refused.value.retry_seconds == 1.0


# --- misses -------------------------------------------------------------------------------------------------


def miss_of(engine, tokens: list[int]) -> Miss | None:
    engine.submit(tokens, SHORT)
    usage = []
    while engine.busy:
        usage += [e.usage for e in engine.step() if isinstance(e, FinishEvent)]
    return usage[0].miss


def test_a_prompt_says_where_it_leaves_what_is_cached():
    engine, tokens = counting_engine(), random_tokens(100, seed=1)
    assert miss_of(engine, tokens) is None  # nothing was kept to compare with
    assert miss_of(engine, tokens) is None  # found to its end
    changed = [*tokens[:70], tokens[70] % 300 + 1, *tokens[71:]]
    spelt = engine.tokenizer.token_bytes
    miss = miss_of(engine, changed)
    assert miss is not None
    assert (miss.position, miss.block) == (70, 4)
    assert (miss.expected, miss.got) == (tuple(tokens[70:78]), tuple(changed[70:78]))
    assert miss.expected_text == b"".join(map(spelt, tokens[70:78])).decode(errors="replace")
    assert miss.got_text == b"".join(map(spelt, changed[70:78])).decode(errors="replace")
    first = [tokens[0] % 300 + 1, *tokens[1:]]
    miss = miss_of(engine, first)
    assert miss is not None
    assert (miss.position, miss.block, miss.expected[0], miss.got[0]) == (0, 0, tokens[0], first[0])


def test_text_added_at_the_end_is_no_miss():
    engine, tokens = counting_engine(), random_tokens(6 * BLOCK, seed=1)
    miss_of(engine, tokens)
    assert miss_of(engine, [*tokens, 1, *random_tokens(40, seed=2)]) is None

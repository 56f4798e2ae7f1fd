"""The life of requests: limits, stops, cancelling, and the order of service."""

from __future__ import annotations

import pytest
import torch

from freehold.core.errors import BusyError, CapacityError, ContextLengthError, RequestError
from freehold.core.events import FinishEvent, PrefillEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from support.tiny_engine import VOCAB, random_tokens, tiny_engine, tiny_model

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def engine(model):
    return tiny_engine(model, prefill_chunk=32)


def finish(engine) -> dict[str, list]:
    events: dict[str, list] = {}
    while engine.busy:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    engine.cache.check_integrity()
    return events


def test_prefill_progress_is_reported_chunk_by_chunk(engine):
    rid = engine.submit(random_tokens(80), GREEDY)
    events = finish(engine)[rid]
    assert [e.done for e in events if isinstance(e, PrefillEvent)] == [32, 64]
    assert isinstance(events[-1], FinishEvent)
    assert events[-1].usage.prompt_tokens == 80
    assert events[-1].usage.completion_tokens == 8
    assert events[-1].reason == "length"


def test_long_prompts_do_not_hold_up_running_answers(engine):
    first = engine.submit(random_tokens(10), SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True))
    engine.step()
    second = engine.submit(random_tokens(300, seed=1), GREEDY)
    for _ in range(5):
        events = engine.step()
        assert any(isinstance(e, TokenEvent) and e.request_id == first for e in events)
        assert any(isinstance(e, PrefillEvent) and e.request_id == second for e in events)
    finish(engine)


def test_a_stop_text_across_tokens_ends_the_answer_and_is_not_part_of_it(engine):
    prompt = random_tokens(20)
    rid = engine.submit(prompt, SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True))
    text = "".join(e.text for e in finish(engine)[rid] if not isinstance(e, PrefillEvent))
    stop = text[6:9]
    where = text.index(stop)
    rid = engine.submit(prompt, SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, stop=(stop,)))
    events = finish(engine)[rid]
    assert "".join(e.text for e in events if not isinstance(e, PrefillEvent)) == text[:where]
    assert events[-1].reason == "stop"
    assert events[-1].usage.completion_tokens == where + 3
    assert events[-1].stop_text == stop


def test_text_held_back_for_a_stop_that_never_came_is_delivered(engine):
    prompt = random_tokens(20)
    rid = engine.submit(prompt, GREEDY)
    text = "".join(e.text for e in finish(engine)[rid] if not isinstance(e, PrefillEvent))
    rid = engine.submit(
        prompt, SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, stop=(text[-2:] + "no",))
    )
    assert "".join(e.text for e in finish(engine)[rid] if not isinstance(e, PrefillEvent)) == text


def test_the_end_token_ends_an_answer_unless_ignored(engine):
    bias = {0: 100.0}
    rid = engine.submit([5, 6], SamplingParams(max_tokens=8, temperature=0.0, logit_bias=bias))
    events = finish(engine)[rid]
    assert (events[-1].reason, events[-1].stop_text) == ("stop", None)
    assert events[-1].usage.completion_tokens == 1
    rid = engine.submit([5, 6], SamplingParams(max_tokens=8, temperature=0.0, logit_bias=bias, ignore_eos=True))
    assert finish(engine)[rid][-1].usage.completion_tokens == 8


def test_cancel_ends_a_request_and_frees_its_blocks(engine):
    free = engine.cache.pool.num_free
    rid = engine.submit(random_tokens(15), SamplingParams(max_tokens=500, temperature=0.0, ignore_eos=True))
    engine.step()
    engine.cancel(rid)
    events = engine.step()
    assert [e.reason for e in events if isinstance(e, FinishEvent)] == ["cancelled"]
    assert not engine.busy
    stats = engine.cache.stats()
    assert stats.num_free + stats.num_kept == free  # what is kept may be taken when it is needed
    engine.cancel("nobody")


def test_a_cancelled_prefill_keeps_its_finished_blocks(engine):
    prompt = random_tokens(200)
    rid = engine.submit(prompt, GREEDY)
    engine.step()
    engine.step()
    engine.cancel(rid)
    engine.step()
    rid = engine.submit(prompt, GREEDY)
    assert finish(engine)[rid][-1].usage.cached_tokens == 64


def test_what_can_never_be_served_is_refused_with_the_reason(engine, model):
    with pytest.raises(ContextLengthError, match="1024 tokens; the context is 1024"):
        engine.submit(random_tokens(1024), GREEDY)
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit([], GREEDY)
    with pytest.raises(RequestError, match=f"prompt has token id {VOCAB}; the vocabulary has {VOCAB}"):
        engine.submit([1, VOCAB], GREEDY)
    with pytest.raises(RequestError, match="logit_bias has token id -1"):
        engine.submit([1], SamplingParams(logit_bias={-1: 1.0}))
    small = tiny_engine(model, cache_tokens=64)
    with pytest.raises(CapacityError, match=r"needs 108 tokens of cache .* holds 64"):
        small.submit(random_tokens(100), GREEDY)
    full = tiny_engine(model, max_waiting=1, max_running=1)
    full.submit([1, 2], GREEDY)
    with pytest.raises(BusyError, match="1 requests are waiting"):
        full.submit([1, 2], GREEDY)


def test_an_answer_ends_at_the_context(engine):
    rid = engine.submit(random_tokens(1020), SamplingParams(temperature=0.0, ignore_eos=True))
    events = finish(engine)[rid]
    assert events[-1].reason == "length"
    assert events[-1].usage.completion_tokens == 4


def test_more_requests_than_places_are_all_answered_in_order(model):
    engine = tiny_engine(model, max_running=2)
    ids = [engine.submit(random_tokens(20, seed=s), GREEDY) for s in range(6)]
    done = []
    while engine.busy:
        done += [e.request_id for e in engine.step() if isinstance(e, FinishEvent)]
    assert done == ids


def test_damaged_weights_end_the_request_with_an_error():
    model = tiny_model("llama", seed=1)
    model.norm.weight.data[0] = float("nan")
    engine = tiny_engine(model)
    rid = engine.submit([1, 2, 3], GREEDY)
    events = finish(engine)[rid]
    assert events[-1].reason == "error"
    assert "not finite" in events[-1].error


def test_score_gives_every_position_and_leaves_no_trace(engine):
    tokens = random_tokens(70)
    assert engine.score(tokens).shape == (70, VOCAB)
    assert len(engine.cache.tree) in (0, 4)
    engine.cache.check_integrity()
    with pytest.raises(ContextLengthError):
        engine.score(random_tokens(1025))


def test_the_step_that_samples_equals_score(engine):
    tokens = random_tokens(30)
    rid = engine.submit(tokens, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
    token = next(e.token_id for e in finish(engine)[rid] if isinstance(e, TokenEvent))
    assert token == int(torch.argmax(engine.score(tokens)[-1]))


def test_a_sampled_padding_row_has_no_text_and_ends_nothing(engine):
    padding = VOCAB - 1
    rid = engine.submit([5, 6], SamplingParams(max_tokens=3, temperature=0.0, logit_bias={padding: 100.0}))
    events = finish(engine)[rid]
    assert [e.token_id for e in events if isinstance(e, TokenEvent)] == [padding] * 3
    assert "".join(e.text for e in events if isinstance(e, TokenEvent)) == ""
    assert events[-1].reason == "length"

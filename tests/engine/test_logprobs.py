"""Log-probabilities are the log-softmax of the logits, whatever was asked for besides."""

from __future__ import annotations

import pytest
import torch

from freehold.core.errors import ContextLengthError, RequestError
from freehold.core.events import FinishEvent, PromptLogprobsEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from support.engine_runs import run
from support.tiny_engine import random_tokens, tiny_engine, tiny_model


@pytest.fixture(scope="module", params=["llama", "m3"])
def model(request):
    return tiny_model(request.param)


def events_of(engine, prompt, params):
    engine.submit(prompt, params)
    events = []
    while engine.busy:
        events += engine.step()
    engine.cache.check_integrity()
    return events


def scored(events):
    """Prompt log-probabilities in order; checks that each position comes once."""
    found = []
    for event in events:
        if isinstance(event, PromptLogprobsEvent):
            assert event.start == len(found) + 1
            found += event.logprobs
    return found


def expected(model, tokens, num_top):
    """(logprob, top) of each token but the first, from the logits of the whole text."""
    rows = torch.log_softmax(tiny_engine(model).score(tokens).double(), dim=-1)
    wanted = []
    for row, token in zip(rows, tokens[1:], strict=False):
        best = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))[:num_top]
        wanted.append((float(row[token]), tuple((i, float(row[i])) for i in best)))
    return wanted


def pairs(logprobs):
    return [(each.logprob, each.top) for each in logprobs]


@pytest.mark.parametrize("chunk", [1, 7, 33, 512])
def test_prompt_logprobs_have_the_bits_of_the_whole_text_in_any_chunks(model, chunk):
    prompt = random_tokens(100)
    params = SamplingParams(max_tokens=1, prompt_logprobs=3, ignore_eos=True)
    events = events_of(tiny_engine(model, prefill_chunk=chunk), prompt, params)
    assert pairs(scored(events)) == expected(model, prompt, 3)
    kinds = [type(event) for event in events]
    assert max(i for i, k in enumerate(kinds) if k is PromptLogprobsEvent) < kinds.index(TokenEvent)


def test_a_kept_prefix_takes_no_prompt_logprobs_away(model):
    engine, prompt = tiny_engine(model, prefill_chunk=24), random_tokens(90)
    run(engine, (prompt, SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)))
    events = events_of(engine, prompt, SamplingParams(max_tokens=2, prompt_logprobs=0, ignore_eos=True))
    assert pairs(scored(events)) == expected(model, prompt, 0)
    assert events[-1].usage.cached_tokens == 0


def test_prompt_logprobs_come_once_in_company_and_after_pauses(model):
    engine = tiny_engine(model, prefill_chunk=16, cache_tokens=160)
    params = SamplingParams(max_tokens=40, temperature=0.0, prompt_logprobs=1, ignore_eos=True)
    prompts = {engine.submit(random_tokens(60, seed=s), params): random_tokens(60, seed=s) for s in range(4)}
    events = {rid: [] for rid in prompts}
    while engine.busy:
        for event in engine.step():
            events[event.request_id].append(event)
    for rid, prompt in prompts.items():
        assert events[rid][-1].usage.completion_tokens == 40
        assert pairs(scored(events[rid])) == expected(model, prompt, 1)


def test_a_prompt_alone_can_be_scored_and_nothing_is_sampled(model):
    prompt = random_tokens(50)
    events = events_of(tiny_engine(model), prompt, SamplingParams(max_tokens=0, prompt_logprobs=2))
    assert pairs(scored(events)) == expected(model, prompt, 2)
    assert not any(isinstance(event, TokenEvent) for event in events)
    assert isinstance(events[-1], FinishEvent)
    assert (events[-1].reason, events[-1].usage.completion_tokens) == ("length", 0)


def test_a_prompt_of_one_token_has_nothing_to_score(model):
    events = events_of(tiny_engine(model), [5], SamplingParams(max_tokens=0, prompt_logprobs=2))
    assert [type(event) for event in events] == [FinishEvent]


def test_a_prompt_as_long_as_the_context_can_be_scored_but_not_continued(model):
    engine = tiny_engine(model, context_length=64)
    engine.check(random_tokens(64), SamplingParams(max_tokens=0, prompt_logprobs=0))
    with pytest.raises(ContextLengthError):
        engine.check(random_tokens(64), SamplingParams(max_tokens=1, prompt_logprobs=0))
    with pytest.raises(ContextLengthError):
        engine.check(random_tokens(65), SamplingParams(max_tokens=0, prompt_logprobs=0))


@pytest.mark.parametrize("num_top", [0, 5])
def test_logprobs_of_sampled_tokens_are_of_the_raw_distribution(model, num_top):
    prompt = random_tokens(40)
    fields = {"temperature": 0.7, "top_k": 3, "repetition_penalty": 1.5, "logit_bias": {9: 3.0}, "seed": 2}
    params = SamplingParams(max_tokens=10, logprobs=num_top, ignore_eos=True, **fields)
    events = [e for e in events_of(tiny_engine(model), prompt, params) if isinstance(e, TokenEvent)]
    tokens = [event.token_id for event in events]
    assert pairs(e.logprobs for e in events) == expected(model, prompt + tokens, num_top)[len(prompt) - 1 :]
    assert [tokens] == run(
        tiny_engine(model), (prompt, SamplingParams(max_tokens=10, ignore_eos=True, **fields))
    )  # asking changes nothing


def test_equal_logprobs_go_to_the_lower_id():
    import numpy as np

    from freehold.engine.logprobs import token_logprobs

    said = token_logprobs(np.array([1.0, 3.0, 2.0, 3.0, 3.0], np.float32), 2, 2)
    assert [token for token, _ in said.top] == [1, 3]


def test_nothing_is_said_unasked(model):
    events = events_of(tiny_engine(model), [1, 2], SamplingParams(max_tokens=2, ignore_eos=True))
    assert all(e.logprobs is None for e in events if isinstance(e, TokenEvent))
    assert not scored(events)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": 21}, "logprobs is 21; it must be between 0 and 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"logprobs": True}, "logprobs is True"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1, or 0 together with prompt_logprobs"),
        ({"max_tokens": -1, "prompt_logprobs": 0}, "max_tokens is -1"),
        ({"skip_special_tokens": 1}, "skip_special_tokens is 1"),
    ],
)
def test_wrong_values_are_refused_by_name(fields, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)

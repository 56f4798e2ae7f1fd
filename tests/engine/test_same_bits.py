"""A token's logits do not depend on company or history: the same bits, whatever else happened."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.core.sampling import SamplingParams
from support.engine_runs import logits_of_steps, run
from support.tiny_engine import random_tokens, tiny_engine, tiny_model


@pytest.fixture(scope="module", params=["llama", "m3"])
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("chunk", [1, 7, 16, 100, 333])
def test_chunked_prefill_equals_whole_prefill(model, chunk):
    tokens = random_tokens(333)
    whole = tiny_engine(model, prefill_chunk=512).score(tokens)
    assert torch.equal(whole, tiny_engine(model, prefill_chunk=chunk).score(tokens))


def test_the_number_of_threads_changes_no_bit(model):
    tokens, before = random_tokens(150), kernels.threads()
    try:
        results = []
        for threads in (1, 2):
            kernels.set_threads(threads)
            results.append(tiny_engine(model).score(tokens))
    finally:
        kernels.set_threads(before)
    assert torch.equal(*results)


def test_decoding_in_company_equals_teacher_forcing_alone(model, monkeypatch):
    engine = tiny_engine(model, prefill_chunk=32)
    seen = logits_of_steps(engine, monkeypatch)
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
    prompts = [random_tokens(n, seed=n) for n in (5, 40, 100, 17)]
    run(engine, *[(p, params) for p in prompts])
    assert len(seen) == 4 * 12
    for position, tokens, logits in seen:
        alone = tiny_engine(model).score(list(tokens))[position]
        assert torch.equal(alone, logits)


def test_a_prefix_hit_equals_a_miss(model, monkeypatch):
    engine = tiny_engine(model)
    prompt = random_tokens(100)
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    seen = logits_of_steps(engine, monkeypatch)
    run(engine, (prompt, params))
    computed = engine.cache.stats().computed_tokens
    run(engine, (prompt, params))
    # All but the tokens of the block that was open; and the four generated ones that were fed back.
    assert engine.cache.stats().computed_tokens - computed <= 16 + 4
    assert len(seen) == 10
    for (_, tokens, first), (_, again, second) in zip(seen[:5], seen[5:], strict=True):
        assert tokens == again
        assert torch.equal(first, second)


def test_answers_of_a_cache_too_small_for_all_are_the_same(model):
    params = SamplingParams(max_tokens=60, temperature=0.8, seed=1, ignore_eos=True)
    requests = [(random_tokens(50, seed=s), params) for s in range(5)]
    roomy = run(tiny_engine(model, cache_tokens=4096), *requests)
    tight = run(tiny_engine(model, cache_tokens=160), *requests)
    assert roomy == tight
    assert all(len(answer) == 60 for answer in tight)


def test_native_and_reference_agree(model):
    kind = "llama" if type(model).__name__ == "Llama" else "m3"
    tokens = random_tokens(200)
    native = tiny_engine(model).score(tokens)
    reference = tiny_engine(tiny_model(kind, impl="reference")).score(tokens)
    assert (native - reference).abs().max() < 1e-4


def test_bfloat16_cache_gives_the_same_bits_in_any_chunking(model):
    tokens = random_tokens(150)
    whole = tiny_engine(model, kv_dtype="bfloat16").score(tokens)
    pieces = tiny_engine(model, kv_dtype="bfloat16", prefill_chunk=23).score(tokens)
    assert torch.equal(whole, pieces)
    exact = tiny_engine(model).score(tokens)
    assert 0 < (whole - exact).abs().max() < 1.0

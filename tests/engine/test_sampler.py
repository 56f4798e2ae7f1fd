"""Sampling: each field does what its definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import RequestError
from freehold.core.sampling import SamplingParams
from freehold.engine.sampler import Sampler, _distribution

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], dtype=np.float32))


def support(**fields) -> set[int]:
    ids, _ = _distribution(LOGITS.astype(np.float64), SamplingParams(**fields))
    return set(ids.tolist())


def test_greedy_takes_the_largest_and_the_lower_id_on_ties():
    sampler = Sampler(SamplingParams(temperature=0.0))
    assert sampler.sample(np.array([1.0, 3.0, 3.0], np.float32), [], 0) == 1


def test_top_k_top_p_and_min_p_cut_where_they_say():
    assert support() == {0, 1, 2, 3, 4}
    assert support(top_k=2) == {0, 1}
    assert support(top_p=0.5) == {0}
    assert support(top_p=0.69) == {0, 1}
    assert support(top_p=0.71) == {0, 1, 2}
    assert support(min_p=0.25) == {0, 1, 2}
    assert support(top_k=3, top_p=0.8) == {0, 1}  # 0.7 of 0.85 is above 0.8 of what top_k left
    assert support(top_p=1e-9) == {0}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6000), st.integers(0, 2**31), st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_nucleus_equals_its_plain_definition(size, seed, top_p, min_p):
    scores = np.random.default_rng(seed).normal(size=size) * 3
    ids, kept = _distribution(scores, SamplingParams(top_p=top_p, min_p=min_p))
    p = np.exp(scores - scores.max())
    order = np.argsort(-p, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    wanted = {int(i) for i, b in zip(order, before, strict=True) if top_p == 1.0 or b < top_p * p.sum()}
    wanted &= {int(i) for i in order if p[i] >= min_p}
    sure = {int(i) for i, b in zip(order, before, strict=True) if abs(b - top_p * p.sum()) > 1e-9 * p.sum()}
    assert set(ids.tolist()) & sure == wanted & sure
    assert np.array_equal(kept, p[ids])


def test_frequencies_follow_the_distribution():
    sampler = Sampler(SamplingParams(seed=1))
    counts = np.bincount([sampler.sample(LOGITS, [], 0) for _ in range(20000)], minlength=5)
    assert np.abs(counts / 20000 - np.exp(LOGITS)).max() < 0.015


def test_a_seed_repeats_and_another_differs():
    def draw(seed):
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.sample(LOGITS, [], 0) for _ in range(50)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_temperature_sharpens():
    ids, cold = _distribution(LOGITS.astype(np.float64) / 0.5, SamplingParams())
    assert cold[0] / cold.sum() > 0.75
    assert len(ids) == 5


def test_penalties_and_bias():
    def adjusted(**fields):
        return Sampler(SamplingParams(**fields))._adjusted(np.array([2.0, -2.0, 1.0], np.float32), [1, 0, 0], 1)

    assert adjusted(repetition_penalty=2.0).tolist() == [1.0, -4.0, 1.0]
    assert adjusted(presence_penalty=0.5).tolist() == [1.5, -2.0, 1.0]
    assert adjusted(frequency_penalty=0.5).tolist() == [1.0, -2.0, 1.0]
    assert adjusted(logit_bias={2: 3.0}).tolist() == [2.0, -2.0, 4.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("top_k", 0), ("top_p", 0.0), ("min_p", 2.0), ("max_tokens", 0), ("stop", ("",)),
     ("temperature", float("nan")), ("presence_penalty", 3.0), ("repetition_penalty", 0.0), ("logit_bias", {1: 1e9})],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})

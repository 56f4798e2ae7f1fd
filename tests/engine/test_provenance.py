"""Which blocks an answer was made from: what the sparse layers chose, token by token."""

from __future__ import annotations

import itertools

from freehold.core.errors import LostBlocksError
from freehold.core.events import FinishEvent
from freehold.core.provenance import TokenRange
from freehold.core.sampling import SamplingParams
from support.tiny_engine import random_tokens, tiny_engine, tiny_model

PARAMS = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)


def finish(engine, *prompts, provenance):
    ids = [engine.submit(prompt, PARAMS, provenance=provenance) for prompt in prompts]
    done = {}
    while engine.busy:
        done.update({e.request_id: e for e in engine.step() if isinstance(e, FinishEvent)})
    return [done[i] for i in ids]


def test_each_token_names_the_blocks_that_scoring_the_text_reads():
    model = tiny_model("m3")
    engine = tiny_engine(model, prefill_chunk=32)
    prompts = [random_tokens(n, seed=n) for n in (100, 37)]
    answers = {}
    engine_tokens = [engine.submit(p, PARAMS, provenance=True) for p in prompts]
    while engine.busy:
        for event in engine.step():
            if isinstance(event, FinishEvent):
                answers[event.request_id] = event.provenance
            elif hasattr(event, "token_id"):
                prompts[engine_tokens.index(event.request_id)].append(event.token_id)
    for request_id, tokens in zip(engine_tokens, prompts, strict=True):
        seen = {}
        tiny_engine(model).score(tokens, observer=lambda start, seen=seen: seen.__setitem__)
        provenance = answers[request_id]
        assert [reads.position for reads in provenance.tokens] == list(range(len(tokens) - 6, len(tokens) - 1))
        for reads in provenance.tokens:
            assert sorted(reads.layers) == [1, 2]  # layer 0 is dense
            for layer, heads in reads.layers.items():
                wanted = seen[layer][reads.position].tolist()
                assert [list(blocks) for blocks in heads] == [[b for b in blocks if b >= 0] for blocks in wanted]


def test_a_token_that_is_computed_again_is_noted_once(monkeypatch):
    model = tiny_model("m3")
    (expected,) = finish(tiny_engine(model), random_tokens(50), provenance=True)
    engine = tiny_engine(model)
    original, calls = engine.runner.run, itertools.count(1)

    def meets_a_lost_block(*arguments):
        if next(calls) % 3 == 0:
            raise LostBlocksError(())
        return original(*arguments)

    monkeypatch.setattr(engine.runner, "run", meets_a_lost_block)
    (event,) = finish(engine, random_tokens(50), provenance=True)
    assert event.provenance == expected.provenance


def test_ranges_sum_over_tokens_layers_and_heads():
    (event,) = finish(tiny_engine(tiny_model("m3")), random_tokens(100), provenance=True)
    ranges = event.provenance.ranges()
    assert sum(r.reads for r in ranges) == 5 * 2 * 2 * 3  # tokens, sparse layers, KV heads, top-k
    assert ranges == sorted(ranges, key=lambda r: (-r.reads, r.first))
    assert {r.first % 16 for r in ranges} == {0}
    # The last block ends with the last token that was read.
    assert max(r.end for r in ranges) == 104
    assert TokenRange(96, 104, 5 * 2 * 2) in ranges  # every query reads its own block


def test_nothing_is_noted_unless_it_is_asked_for():
    (event,) = finish(tiny_engine(tiny_model("m3")), random_tokens(50), provenance=False)
    assert event.provenance is None

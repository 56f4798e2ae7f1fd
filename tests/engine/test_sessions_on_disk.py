"""Blocks that outlive the process, and K and V that do not fit into RAM: the same bits as if all were in memory."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch

from freehold.cache import record_layout, taken_bytes
from freehold.core.config import EngineConfig
from freehold.core.errors import CapacityError, ConfigError, ContextLengthError, StoreLockedError
from freehold.core.events import FinishEvent
from freehold.core.sampling import SamplingParams
from freehold.engine import memory
from support.engine_runs import logits_of_steps, run
from support.tiny_engine import random_tokens, tiny_engine, tiny_model

GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module", params=["llama", "m3"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def m3():
    return tiny_model("m3")


def same_steps(some, others):
    assert len(some) == len(others) > 0
    for (_, tokens, logits), (_, other_tokens, other_logits) in zip(some, others, strict=True):
        assert tokens == other_tokens
        assert torch.equal(logits, other_logits)


def bits_alone(model, prompt, monkeypatch):
    engine = tiny_engine(model)
    seen = logits_of_steps(engine, monkeypatch)
    run(engine, (prompt, GREEDY))
    return seen


def test_a_restart_finds_the_session_and_says_the_same(model, tmp_path, monkeypatch):
    prompt = random_tokens(500)
    engine = tiny_engine(model, store_dir=str(tmp_path))
    run(engine, (prompt, GREEDY))
    engine.close()

    again = tiny_engine(model, store_dir=str(tmp_path))
    seen = logits_of_steps(again, monkeypatch)
    run(again, (prompt, GREEDY))
    stats = again.cache.stats()
    assert stats.restored_tokens == 512  # 500 of the prompt and 19 of the answer were computed: 32 full blocks
    assert stats.computed_tokens <= 16 + 20
    again.close()
    same_steps(seen, bits_alone(model, prompt, monkeypatch))


def test_a_restart_reuses_the_beginning_of_a_stored_block(m3, tmp_path):
    prompt = random_tokens(170)
    engine = tiny_engine(m3, store_dir=str(tmp_path))
    run(engine, (prompt, GREEDY))
    engine.close()
    again = tiny_engine(m3, store_dir=str(tmp_path))
    other = [*prompt[:150], *random_tokens(20, seed=9)]
    answers = run(again, (other, GREEDY))
    assert again.cache.stats().hit_tokens >= 150
    assert answers == run(tiny_engine(m3), (other, GREEDY))
    again.close()


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
def test_a_ram_budget_changes_no_bit(m3, tmp_path, kv_dtype):
    frames = 64
    budget = frames * 2 * 16 * 2 * 32 * 2 * (4 if kv_dtype == "float32" else 2)
    requests = [(random_tokens(700, seed=s), GREEDY) for s in range(3)]
    tight = tiny_engine(m3, store_dir=str(tmp_path), ram_budget=budget, cache_tokens=8192, kv_dtype=kv_dtype)
    pagers = tight.cache.pool.disk.pagers.values()
    assert [pager.num_frames for pager in pagers] == [frames, frames]
    answers = run(tight, *requests)
    assert answers == run(tiny_engine(m3, cache_tokens=8192, kv_dtype=kv_dtype), *requests)
    # And once more, with what is there.
    computed = tight.cache.stats().computed_tokens
    assert run(tight, *requests) == answers
    assert all(pager.num_read > 20 for pager in pagers)  # 3 sequences of 45 blocks each do not fit
    assert tight.cache.stats().computed_tokens - computed == 3 * 20
    tight.close()


@pytest.mark.parametrize(
    ("lengths", "can_be_written"), [((600, 600), False), ((40,) * 90, True)], ids=["full disk", "many at once"]
)
def test_requests_that_do_not_fit_into_a_ram_budget_together_take_turns(m3, tmp_path, lengths, can_be_written):
    (tmp_path / "file").write_text("")
    directory = tmp_path / "store" if can_be_written else tmp_path / "file" / "store"
    budget = 64 * 2 * 16 * 2 * 32 * 2 * 4
    engine = tiny_engine(m3, store_dir=str(directory), ram_budget=budget, cache_tokens=8192, max_running=100)
    requests = [(random_tokens(length, seed=s), GREEDY) for s, length in enumerate(lengths)]
    assert run(engine, *requests) == run(tiny_engine(m3, max_running=100), *requests)
    engine.close()


def test_a_request_that_does_not_fit_into_a_ram_budget_ends_alone(m3, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LEAST_FRAMES", 16)
    (tmp_path / "file").write_text("")
    budget = 16 * 2 * 16 * 2 * 32 * 2 * 4
    engine = tiny_engine(m3, store_dir=str(tmp_path / "file" / "store"), ram_budget=budget, prefill_chunk=64)
    long, short = (engine.submit(random_tokens(length), GREEDY) for length in (600, 50))
    ends = {}
    while engine.busy:
        ends.update({e.request_id: e for e in engine.step() if isinstance(e, FinishEvent)})
    assert ends[short].reason == "length"
    assert "start with a larger ram_budget" in ends[long].error
    engine.cache.check_integrity()


def test_what_has_to_stay_in_ram_is_refused_if_it_exceeds_the_budget(m3, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LEAST_FRAMES", 16)
    budget = 16 * 2 * 16 * 2 * 32 * 2 * 4
    engine = tiny_engine(m3, store_dir=str(tmp_path), ram_budget=budget, cache_tokens=1024, prefill_chunk=64)
    engine.check(random_tokens(300), GREEDY)
    with pytest.raises(CapacityError, match=r"needs 257 tokens .* stay in RAM, which holds 256"):
        engine.check(random_tokens(256), SamplingParams(max_tokens=1, prompt_logprobs=0))
    with pytest.raises(ContextLengthError, match="the cache holds 256 tokens in RAM"):
        engine.score(random_tokens(257))
    engine.submit(random_tokens(240), SamplingParams(ignore_eos=True, prompt_logprobs=0))
    ends = []
    while engine.busy:
        ends += [e for e in engine.step() if isinstance(e, FinishEvent)]
    assert [(end.reason, end.usage.completion_tokens) for end in ends] == [("length", 16)]
    engine.close()


def test_a_block_damaged_under_way_is_computed_again(m3, tmp_path, monkeypatch, caplog):
    prompt = random_tokens(600)
    engine = tiny_engine(m3, store_dir=str(tmp_path))
    run(engine, (prompt, GREEDY))
    engine.close()
    again = tiny_engine(m3, store_dir=str(tmp_path))
    layout = again.cache.pool.disk.store.layout
    place = layout.place("1/kv")
    [segment] = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size >= layout.record_bytes * 30]
    with segment.open("r+b") as file:  # K and V of layer 1 of every stored block but the first three
        for slot in range(3, 38):
            file.seek(slot * layout.record_bytes + place.offset + 100)
            file.write(b"\xff\x00\xff")
    seen = logits_of_steps(again, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="freehold.cache"):
        run(again, (prompt, GREEDY))
    assert again.cache.pool.disk.store.damage.num_events > 0
    assert caplog.records
    again.close()
    same_steps(seen, bits_alone(m3, prompt, monkeypatch))


def test_an_evicted_session_comes_back_from_the_disk(model, tmp_path, monkeypatch):
    first, second = random_tokens(300, seed=1), random_tokens(300, seed=2)
    engine = tiny_engine(model, store_dir=str(tmp_path), cache_tokens=352)
    run(engine, (first, GREEDY))
    run(engine, (second, GREEDY))
    before = engine.cache.stats().computed_tokens
    seen = logits_of_steps(engine, monkeypatch)
    run(engine, (first, GREEDY))
    assert engine.cache.stats().computed_tokens - before <= 16 + 20
    engine.close()
    same_steps(seen, bits_alone(model, first, monkeypatch))


def test_a_restart_leaves_the_store_its_size(m3, tmp_path, monkeypatch):
    disk = 60 * record_layout(m3.lane_specs, 16, torch.float32).record_bytes
    usage = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    counts = []
    for _ in range(3):
        usage.free = disk - taken_bytes(tmp_path)
        engine = tiny_engine(m3, store_dir=str(tmp_path))
        engine.cache.pool.disk.store.flush()
        counts.append(engine.cache.pool.disk.store.stats().num_blocks)
        run(engine, (random_tokens(1000), GREEDY))
        engine.close()
    assert counts == [0, 30, 30]


def test_another_model_finds_nothing(m3, tmp_path):
    engine = tiny_engine(m3, store_dir=str(tmp_path))
    run(engine, (random_tokens(200), GREEDY))
    engine.close()
    other = tiny_engine(m3, store_dir=str(tmp_path), kv_dtype="bfloat16")
    run(other, (random_tokens(200), GREEDY))
    assert other.cache.stats().restored_tokens == 0
    other.close()


def test_two_engines_cannot_share_a_store(m3, tmp_path):
    engine = tiny_engine(m3, store_dir=str(tmp_path))
    with pytest.raises(StoreLockedError, match=str(tmp_path)):
        tiny_engine(m3, store_dir=str(tmp_path))
    engine.close()


def test_a_budget_needs_a_store_and_sparse_layers(m3, tmp_path):
    with pytest.raises(ConfigError, match="store_dir is ' '; name a directory"):
        EngineConfig(store_dir=" ")
    with pytest.raises(ConfigError, match="store_dir"):
        tiny_engine(m3, ram_budget=1 << 30)
    with pytest.raises(ConfigError, match="at least"):
        tiny_engine(m3, ram_budget=1 << 10, store_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"at least .* \(128 blocks\), or a smaller prefill_chunk"):
        tiny_engine(m3, ram_budget=127 * 2 * 16 * 2 * 32 * 2 * 4, store_dir=str(tmp_path), prefill_chunk=1024)
    with pytest.raises(ConfigError, match="sparse"):
        tiny_engine(tiny_model("llama"), ram_budget=1 << 30, store_dir=str(tmp_path))

"""Whatever happens to the files of a block store, the answers have the same bits."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from freehold.core.sampling import SamplingParams
from support.engine_runs import logits_of_steps, run
from support.tiny_engine import random_tokens, tiny_engine, tiny_model

PARAMS = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
PROMPTS = [(random_tokens(180, seed=s), PARAMS) for s in range(2)]


def steps(engine, monkeypatch):
    with monkeypatch.context() as patch:
        seen = logits_of_steps(engine, patch)
        run(engine, *PROMPTS)
    return {(tokens, tuple(logits.tolist())) for _, tokens, logits in seen}


@pytest.fixture(scope="module")
def model():
    return tiny_model("m3")


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A store that holds the prompts."""
    directory = tmp_path_factory.mktemp("written")
    engine = tiny_engine(model, store_dir=str(directory))
    run(engine, *PROMPTS)
    engine.close()
    return directory


def damage(directory: Path, draw: random.Random) -> str:
    """Does something bad to one file; says what."""
    file = draw.choice(sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size))
    size = file.stat().st_size
    kind = draw.choice(["flip", "flip", "flip", "zero", "truncate", "delete", "overwrite"])
    if kind == "delete":
        file.unlink()
    elif kind == "truncate":
        os.truncate(file, draw.randrange(size))
    else:
        # Mostly where something lies: a data file is preallocated, and its end is empty.
        place = draw.randrange(min(size, 700_000))
        length = {"flip": 1, "zero": 5000, "overwrite": 300}[kind]
        with file.open("r+b") as opened:
            opened.seek(place)
            old = opened.read(length)
            new = {"flip": bytes([old[0] ^ 1 << draw.randrange(8)]), "zero": bytes(len(old))}.get(kind)
            opened.seek(place)
            opened.write(draw.randbytes(len(old)) if new is None else new)
    return f"{kind} {file.name}"


@pytest.mark.parametrize("trials", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_changes_a_bit(model, written, tmp_path, monkeypatch, trials):
    expected = steps(tiny_engine(model), monkeypatch)
    draw, noticed = random.Random(4), 0
    for trial in range(trials):
        store = tmp_path / f"store {trial}"
        shutil.copytree(written, store)
        what = damage(store, draw)
        engine = tiny_engine(model, store_dir=str(store))
        assert steps(engine, monkeypatch) == expected, (trial, what)
        events = engine.cache.pool.disk.store.damage.num_events
        found = engine.cache.stats().restored_tokens
        # What is missing was reported; what was not touched is found.
        assert events or found == 2 * 176, (trial, what, events, found)
        noticed += events > 0
        engine.close()
        shutil.rmtree(store)
    assert noticed > trials / 4


def test_a_directory_that_cannot_be_made_costs_only_the_store(model, tmp_path, monkeypatch):
    expected = steps(tiny_engine(model), monkeypatch)
    (tmp_path / "file").write_text("")
    engine = tiny_engine(model, store_dir=str(tmp_path / "file" / "store"))
    assert steps(engine, monkeypatch) == expected
    assert engine.cache.pool.disk.store.damage.num_events > 0
    engine.close()

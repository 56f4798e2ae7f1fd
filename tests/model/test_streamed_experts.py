"""Experts that stay on the disk: the same bits as in memory, within a budget, from a file that is written once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import freehold
from freehold import kernels
from freehold.core.errors import ConfigError, CorruptFileError, LoadError
from freehold.kernels import Experts, Gate, pack_weight
from freehold.loading import expert_file
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.expert_file import ExpertFile, ExpertWriter
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.quantize.job import quantize
from support.portable_random import portable_tokens
from support.quantised_m3 import write_quantised_m3
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3, write_tiny_m3_gguf

SPEC = TinyM3Spec("streamed", (0, 1, 1), (0, 1, 1), num_experts=6, topk=2, block_tokens=32, expert_size=64)
TOKENS = [int(token) for token in portable_tokens(150, seed=1, name="streamed")]
GATE = Gate(clamped=True, alpha=1.702, limit=7.0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FREEHOLD_HOME, where the files of experts are."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module", params=["floats", "gguf", "int4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    if request.param == "gguf":
        write_tiny_m3_gguf(SPEC, folder / "model.gguf")
        return folder / "model.gguf"
    write_tiny_m3(SPEC, folder / "floats")
    if request.param == "floats":
        return folder / "floats"
    with open_checkpoint(folder / "floats") as checkpoint:
        return quantize(checkpoint, folder / "int4", 4).path


def cache_of(llm: freehold.LLM) -> Any:
    assert isinstance(llm.engine.model, MiniMaxM3)
    return llm.engine.model.expert_cache


def expert_nbytes(home: Path) -> int:
    """The places' size, of the file that was written."""
    (path,) = (home / "experts").glob("*.experts")
    identity = json.loads(expert_file.listing(path).read_text())["identity"]
    found = ExpertFile.find(path, identity)
    assert found is not None
    return sum(max(r.nbytes for r in found.regions.values() if r.part == part) for part in ("gate", "up", "down"))


def test_the_same_bits_at_every_budget(model: Path, home: Path) -> None:
    with freehold.LLM(model) as llm:
        expected = llm.logits(TOKENS)
        answer = llm.generate("abc", max_tokens=12, temperature=0.0, ignore_eos=True).token_ids
        assert cache_of(llm) is None
    with freehold.LLM(model, expert_budget=2**30) as llm:
        assert torch.equal(llm.logits(TOKENS), expected)
    size = expert_nbytes(home)
    for places in (2, 3, 5, 7, 12):
        with freehold.LLM(model, expert_budget=size * places + 1, prefill_chunk=64) as llm:
            assert torch.equal(llm.logits(TOKENS), expected)
            assert llm.generate("abc", max_tokens=12, temperature=0.0, ignore_eos=True).token_ids == answer
            cache = cache_of(llm)
            assert cache.num_places == places
            stats = cache.stats
            assert stats.nbytes == stats.misses * size
            if places == 12:  # room for all: each was read once
                assert stats.misses <= 12
                assert stats.hits > 50


def test_experts_are_written_once(model: Path, home: Path) -> None:
    with freehold.LLM(model, expert_budget=2**30):
        pass
    (path,) = (home / "experts").glob("*.experts")
    before = path.stat().st_mtime_ns
    with freehold.LLM(model, expert_budget=2**30) as llm:
        assert path.stat().st_mtime_ns == before
        first = llm.logits(TOKENS)
    expert_file.listing(path).unlink()  # as if it had been interrupted
    with freehold.LLM(model, expert_budget=2**30) as llm:
        assert path.stat().st_mtime_ns > before
        assert torch.equal(llm.logits(TOKENS), first)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    """Another one that begins meanwhile would cut off what is written, and the listing would call the rest whole."""
    path, data = tmp_path / "x.experts", memoryview(bytes(range(256)) * 32)
    writer = ExpertWriter(path, 1, "id")
    writer.write(0, "gate", 0, {}, [data])
    with pytest.raises(LoadError, match="another process is writing it; start again when that one is done"):
        ExpertWriter(path, 1, "id")
    writer.close()
    found = ExpertFile.find(path, "id")
    assert found is not None
    later = ExpertWriter(path, 1, "id")  # what is in use stays as it is
    place = torch.empty(3 * 4096, dtype=torch.uint8)
    into = memoryview(place[-place.data_ptr() % 4096 :][:8192].numpy())
    found.read(0, "gate", 0, into)
    assert bytes(into) == bytes(data)
    later.abandon()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.experts", "x.json"]


def test_a_load_that_failed_is_in_nobodys_way(model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(expert_file.os, "pwrite", full)
        with pytest.raises(LoadError, match="No space left on device; free some space"):
            freehold.LLM(model, expert_budget=2**30)
    assert not list((home / "experts").iterdir())
    with freehold.LLM(model, expert_budget=2**30) as llm:
        assert llm.logits(TOKENS).isfinite().all()


def test_a_file_that_was_cut_short(model: Path, home: Path) -> None:
    with freehold.LLM(model, expert_budget=2**30):
        pass
    (path,) = (home / "experts").glob("*.experts")
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(CorruptFileError, match=r"has \d+ bytes, and was written with \d+; remove it"):
        freehold.LLM(model, expert_budget=2**30)


FORM = ("regions", 1, "form")
EDITS: list[tuple[tuple[str | int, ...], Any]] = [
    (("num_experts",), 5),
    (("num_experts",), 0),
    (("num_experts",), "6"),
    (("num_experts",), None),
    (("nbytes",), 4096),
    (("nbytes",), -1),
    (("nbytes",), 1.5),
    (("regions",), {}),
    (("regions",), []),
    (("regions", 1), 7),
    (("regions", 1, "layer"), 0),
    (("regions", 1, "layer"), "1"),
    (("regions", 1, "layer"), 9),
    (("regions", 1, "part"), "middle"),
    (("regions", 1, "part"), []),
    (("regions", 1, "offset"), 0),
    (("regions", 1, "offset"), 1 << 70),
    (("regions", 1, "nbytes"), 4095),
    (("regions", 1, "nbytes"), 0),
    (("regions", 1, "colour"), "red"),
    (("regions", 1, "form"), None),
    ((*FORM, "kind"), "int5"),
    ((*FORM, "kind"), ["int4"]),
    ((*FORM, "in_features"), 8),
    ((*FORM, "in_features"), -8),
    ((*FORM, "out_features"), 1 << 40),
    ((*FORM, "out_features"), True),
    ((*FORM, "groups"), 5),
    ((*FORM, "groups"), -1),
    ((*FORM, "offsets"), 1),
    ((*FORM, "table"), [1.0] * 15),
    ((*FORM, "table"), 3),
]


def spoil(home: Path, place: tuple[Any, ...], **change: Any) -> Path:
    """Changes one value in the listing, or leaves it out; the listing."""
    (path,) = (home / "experts").glob("*.json")
    values = json.loads(path.read_text())
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    if change:
        inner[place[-1]] = change["to"]
    else:
        del inner[place[-1]]
    path.write_text(json.dumps(values))
    return path


def check_refused(model: Path, listing: Path, *names: str) -> None:
    """The file, a field and the way out are named; and then it works again."""
    with pytest.raises(CorruptFileError) as caught:
        freehold.LLM(model, expert_budget=2**30)
    said = str(caught.value)
    assert said.startswith(f"{listing}: ")
    assert said.endswith("; remove it, and the experts are written anew")
    assert any(name in said for name in names), said
    listing.unlink()
    with freehold.LLM(model, expert_budget=2**30):
        pass


@pytest.mark.parametrize(("place", "value"), EDITS, ids=str)
def test_a_listing_that_was_changed_by_hand(model: Path, home: Path, place: tuple[Any, ...], value: Any) -> None:
    with freehold.LLM(model, expert_budget=2**30):
        pass
    listing = spoil(home, place, to=value)
    # Of two numbers that contradict each other, one is named.
    check_refused(model, listing, f"{place[-1]!r} is", "regions[1] is", "'regions' hold", "'nbytes' is", "'offset' is")


@pytest.mark.parametrize(
    "place",
    [
        *((name,) for name in ("num_experts", "nbytes", "regions")),
        *(("regions", 1, name) for name in ("layer", "part", "form", "offset", "nbytes")),
        *((*FORM, name) for name in ("kind", "in_features", "out_features", "groups", "offsets", "table")),
    ],
    ids=str,
)
def test_a_listing_that_lacks_a_field(model: Path, home: Path, place: tuple[Any, ...]) -> None:
    with freehold.LLM(model, expert_budget=2**30):
        pass
    check_refused(model, spoil(home, place), f"{place[-1]!r} is missing")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 2, "version": 2}', "[" * 10**5, "\xff"])
def test_a_listing_that_is_no_object(model: Path, home: Path, text: str) -> None:
    with freehold.LLM(model, expert_budget=2**30):
        pass
    (path,) = (home / "experts").glob("*.experts")
    expert_file.listing(path).write_text(text, encoding="latin-1")
    with pytest.raises(CorruptFileError, match=rf"{expert_file.listing(path)}: .*; remove it, and the experts"):
        freehold.LLM(model, expert_budget=2**30)


def test_a_read_that_fails_ends_the_answer_and_nothing_else(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with freehold.LLM(model) as llm:
        expected = llm.logits(TOKENS)
    with freehold.LLM(model, expert_budget=2**30):
        pass
    read, count = ExpertFile.read, 0

    def failing(self: ExpertFile, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count >= 4:
            raise LoadError("the disk is gone")
        read(self, *arguments)

    with freehold.LLM(model, expert_budget=expert_nbytes(home) * 3) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(ExpertFile, "read", failing)
            with pytest.raises(LoadError, match="the disk is gone"):
                llm.logits(TOKENS)
        assert torch.equal(llm.logits(TOKENS), expected)
        cache = cache_of(llm)
        assert len(cache._free) + len(cache._places) == 3


def test_a_budget_that_is_too_small_is_refused_before_all_is_written(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with freehold.LLM(model, expert_budget=2**30):
        least = 2 * expert_nbytes(home)
    written, write = [], ExpertWriter.write

    def counting(self: ExpertWriter, layer: int, *others: Any) -> None:
        written.append(layer)
        write(self, layer, *others)

    monkeypatch.setattr(ExpertWriter, "write", counting)
    for file in (home / "experts").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=f"two experts of this model take {least}, the least"):
        freehold.LLM(model, expert_budget=least - 1)
    assert 3 <= len(written) < 3 * SPEC.num_experts * 2
    assert not list((home / "experts").iterdir())
    with freehold.LLM(model, expert_budget=least) as llm:
        assert cache_of(llm).num_places == 2


def test_refusals(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expert_budget is 4096 bytes; two experts of this model take"):
        freehold.LLM(model, expert_budget=4096)
    with pytest.raises(ConfigError, match="goes with the native kernels"):
        freehold.LLM(model, expert_budget=2**30, impl="reference")
    write_tiny_llama(next(iter(LLAMAS.values())), tmp_path / "llama")
    write_tiny_m3(TinyM3Spec("dense", (0, 1), (0, 0)), tmp_path / "m3")
    for name in ("llama", "m3"):
        with pytest.raises(ConfigError, match=rf"expert_budget is 1073741824; .*/{name} has no experts\. Leave it out"):
            freehold.LLM(tmp_path / name, expert_budget=2**30)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), rows=st.integers(1, 9), count=st.integers(2, 7), shared=st.booleans())
def test_waves_have_the_bits_of_one_call(data: st.DataObject, rows: int, count: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + count)
    topk = data.draw(st.integers(1, count))

    def network() -> Any:
        shapes = ((48, 32), (48, 32), (32, 48))
        return tuple(pack_weight(torch.randn(shape, generator=generator)) for shape in shapes)

    networks = [network() for _ in range(count)]
    routed, one = Experts(networks), Experts([network()] if shared else [])
    x = torch.randn(rows, 32, generator=generator)
    ids = torch.stack([torch.randperm(count, generator=generator)[:topk].sort().values for _ in range(rows)]).int()
    weights = torch.rand(rows, topk, generator=generator)
    order = data.draw(st.permutations(sorted(set(ids.flatten().tolist()))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order)))))
    waves = [order[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    places = Experts.vacant(count, 32)

    def coming() -> Any:
        for wave in waves:
            for expert in wave:
                places.set(expert, networks[expert])
            yield wave

    expected = kernels.experts(x, ids, weights, routed, one, gate=GATE, scale=2.0)
    got = kernels.experts_in_waves(x, ids, weights, coming(), places, one, gate=GATE, scale=2.0)
    assert torch.equal(got, expected)


def test_an_expert_with_a_block_of_zeros_is_stored_like_the_others(home: Path, tmp_path: Path) -> None:
    """Its exponent is the smallest there is, and says nothing about the others' bits."""
    path = write_quantised_m3(SPEC, tmp_path, "MXFP8") / "packed"
    with open_checkpoint(path, raw=True) as checkpoint:
        name = next(name for name in checkpoint.tensors if name.endswith("experts.1.w1.weight"))
        codes, scale = checkpoint.extent(name), checkpoint.extent(f"{name}_scale_inv")
    with (path / "model.safetensors").open("r+b") as file:
        for begin, nbytes in ((codes.offset, 32), (scale.offset, 1)):
            file.seek(begin)
            file.write(bytes(nbytes))
    with freehold.LLM(path) as llm:
        expected = llm.logits(TOKENS)
    with freehold.LLM(path, expert_budget=2**30) as llm:
        assert torch.equal(llm.logits(TOKENS), expected)


def test_a_changed_model_is_not_computed_with_the_experts_of_before(home: Path, tmp_path: Path) -> None:
    """The change is where no sample of the tensor is taken, and leaves every size and name as it was."""
    path = tmp_path / "changed"
    write_tiny_m3(SPEC, path)
    with freehold.LLM(path, expert_budget=2**30) as llm:
        before = llm.logits(TOKENS)
    file = path / "model.safetensors"
    with open_checkpoint(path) as checkpoint:
        begins = [checkpoint.extent(name).offset for name in checkpoint.tensors if ".experts." in name]
    with file.open("r+b") as weights:
        for begin in begins:
            weights.seek(begin)
            weights.write(torch.full((16,), 9.0).numpy().tobytes())
    with freehold.LLM(path) as llm:
        expected = llm.logits(TOKENS)
    assert not torch.equal(expected, before)
    with freehold.LLM(path, expert_budget=2**30) as llm:
        assert torch.equal(llm.logits(TOKENS), expected)
    assert len(list((home / "experts").glob("*.experts"))) == 1  # the old one gave way

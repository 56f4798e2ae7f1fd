"""A whole conversion of a tiny model: what comes out, what it says of itself, and where it goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

import freehold
from freehold.cli.cmd_convert import convert as convert_command
from freehold.core.errors import ArgumentError, ConfigError, FreeholdError
from freehold.evaluation.perplexity import read
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.index_sidecar import open_index
from freehold.model.llama import Llama
from freehold.model.registry import load_tokenizer
from freehold.training.convert import ConvertSettings, convert, curves
from freehold.training.corpus import Document, windows_of
from freehold.training.distil import DistilSettings, Lesson, Student
from support.portable_random import portable_tokens
from support.tiny_llama import LLAMAS, TinyLlamaSpec, write_tiny_llama
from support.tiny_m3 import SHAPES, write_tiny_m3

SPEC = TinyLlamaSpec("converted", num_layers=3, seed=31)
SETTINGS = ConvertSettings(
    windows=4, window_tokens=256, block_tokens=16, topk=4, dense_layers=1, judged_windows=2,
    distil=DistilSettings(steps=12, queries=16, save_every=5),
)  # fmt: skip


def letters(number: int) -> str:
    return "".join(chr(97 + token % 26) for token in portable_tokens(400, seed=number, name="text"))


DOCUMENTS = [Document(f"document {i}", "code" if i % 2 else "prose", letters(i)) for i in range(30)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    write_tiny_llama(SPEC, path)
    return path


def run(base: Path, out: Path, work: Path, settings: ConvertSettings = SETTINGS, **options):
    with open_checkpoint(base) as checkpoint:
        return convert(checkpoint, out, DOCUMENTS, settings, work=work, origin="made up", **options)


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes() + (out / "config.json").read_bytes()).hexdigest()


def test_the_model_runs_with_what_comes_out(base: Path, tmp_path: Path) -> None:
    made = run(base, tmp_path / "out", tmp_path / "work")
    assert len(made.sparse_layers) == 2
    assert {harm.layer for harm in made.harms} == {0, 1, 2}
    assert made.harms[0].layer not in made.sparse_layers
    tokens = [int(t) for t in portable_tokens(200, seed=1, name="converted")]
    with freehold.LLM(base, index=str(tmp_path / "out")) as llm:
        assert llm.engine.cache.block_tokens == 16
        sparse, chosen = llm.logits(tokens), llm.selected_blocks(tokens)
    with freehold.LLM(base) as llm:
        dense = llm.logits(tokens)
    assert sorted(chosen) == list(made.sparse_layers)
    torch.testing.assert_close(sparse[:64], dense[:64], rtol=1e-3, atol=1e-3)
    card = json.loads((tmp_path / "out" / "config.json").read_text())["card"]
    assert card["texts"] == "made up"
    assert card["tokens"] == 4 * 256
    assert card["dense_layers"] == [made.harms[0].layer]
    assert card["recall"].keys() == {"0", "1", "2"}
    assert all(len(losses) == 12 for losses in curves(tmp_path / "work").values())
    assert card["perplexity"] == asdict(made.perplexities)
    with open_checkpoint(base) as checkpoint:
        held_out = [document for document in DOCUMENTS if document.held_out]
        windows = windows_of(held_out, load_tokenizer(checkpoint).encode, 256, 2, seed=SETTINGS.distil.seed)
        before, after = read(checkpoint, open_index(tmp_path / "out"), windows, ["index"], lambda *_: None)
    assert made.perplexities.tokens == before.losses.numel()
    assert made.perplexities.dense == pytest.approx(before.perplexity())
    assert made.perplexities.sparse == pytest.approx(after.perplexity())
    assert made.perplexities.dense != made.perplexities.sparse


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 19, 36, 44, 51])
def test_an_interrupted_conversion_ends_with_the_same_bytes(base: Path, tmp_path: Path, stop: int) -> None:
    run(base, tmp_path / "whole", tmp_path / "work")
    left = stop

    def count(what: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        run(base, tmp_path / "out", tmp_path / "other", progress=count)
    run(base, tmp_path / "out", tmp_path / "other")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_named_layers_stay_dense(base: Path, tmp_path: Path) -> None:
    settings = ConvertSettings(**{**_fields(SETTINGS), "keep_dense": (0, 2)})
    made = run(base, tmp_path / "out", tmp_path / "work", settings)
    assert made.sparse_layers == (1,)
    assert made.harms == ()


def _fields(settings: ConvertSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_work_of_another_conversion_is_refused(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", tmp_path / "work")
    other = ConvertSettings(**{**_fields(SETTINGS), "init": "mean"})
    with pytest.raises(ArgumentError, match="holds the work of another conversion"):
        run(base, tmp_path / "out", tmp_path / "work", other)


def test_what_cannot_be_converted_is_named(base: Path, tmp_path: Path) -> None:
    write_tiny_m3(SHAPES["one_far_block"], tmp_path / "m3")
    with pytest.raises(ConfigError, match="only models of the Llama family"):
        run(tmp_path / "m3", tmp_path / "out", tmp_path / "work")
    write_tiny_llama(LLAMAS["attention_bias"], tmp_path / "biased")
    with pytest.raises(ConfigError, match="have biases"):
        run(tmp_path / "biased", tmp_path / "out", tmp_path / "work")
    every = ConvertSettings(**{**_fields(SETTINGS), "keep_dense": (0, 1, 2)})
    with pytest.raises(ArgumentError, match="nothing is left to be sparse"):
        run(base, tmp_path / "out", tmp_path / "work", every)


@pytest.mark.parametrize("value", [torch.nan, 1e30])
def test_a_model_that_predicts_nothing_is_refused_before_the_work(tmp_path: Path, value: float) -> None:
    write_tiny_llama(SPEC, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    head = weights["lm_head.weight"]
    save_file({**weights, "lm_head.weight": head * value}, file, metadata={"format": "pt"})
    with pytest.raises(FreeholdError, match="nats a token, densely; a model that predicts nothing is not converted"):
        run(tmp_path / "base", tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "work" / "captured").exists()


def test_what_was_read_is_not_read_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(base, tmp_path / "out", tmp_path / "work")

    def read(*_given: object) -> None:
        raise AssertionError("the model runs")

    monkeypatch.setattr(Llama, "run_layers", read)
    assert run(base, tmp_path / "out", tmp_path / "work") == made


def test_a_model_that_was_mended_is_read_again(tmp_path: Path) -> None:
    """With a weight that a checkpoint's digest does not see."""
    spec = replace(SPEC, intermediate_size=512)
    write_tiny_llama(spec, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    broken = whole[name].clone()
    broken[0] = torch.nan
    save_file({**whole, name: broken}, file, metadata={"format": "pt"})
    with open_checkpoint(tmp_path / "base") as checkpoint:
        digest = checkpoint.digest()
    with pytest.raises(FreeholdError, match="costs nan nats a token"):
        run(tmp_path / "base", tmp_path / "out", tmp_path / "work")
    save_file(whole, file, metadata={"format": "pt"})
    with open_checkpoint(tmp_path / "base") as checkpoint:
        assert checkpoint.digest() == digest
    run(tmp_path / "base", tmp_path / "out", tmp_path / "work")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]
)
def test_a_layer_without_memory_is_named(
    base: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Student, lesson: Lesson) -> float:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Student, "learn", full)
        with pytest.raises(FreeholdError, match=r"layer \d: there is not enough memory \(.*with OMP_NUM_THREADS=1"):
            run(base, tmp_path / "out", tmp_path / "work")
    run(base, tmp_path / "out", tmp_path / "work")


def test_the_command_begins_with_the_settings_of_the_library() -> None:
    options = (p for p in convert_command.params if isinstance(p, click.Option) and p.show_default)
    given = {option.name: option.default for option in options}
    for settings in (ConvertSettings(), DistilSettings()):
        for name in given.keys() & asdict(settings).keys():
            assert given[name] == getattr(settings, name), name

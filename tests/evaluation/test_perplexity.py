"""Perplexity with several ways to choose blocks: what they choose, and what that does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import freehold
from freehold.attention import attend_blocks
from freehold.attention.impl.reference import top_blocks
from freehold.attention.masses import block_masses
from freehold.cli.main import main
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.evaluation.perplexity import Reading, read, recall
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import open_index
from freehold.training.corpus import Window
from freehold.training.frozen import WindowReader
from support.portable_random import portable_tokens
from support.running import running_server
from support.tiny_index import write_tiny_index
from support.tiny_llama import TinyLlamaSpec, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3

SPEC = TinyLlamaSpec("judged", num_layers=2, seed=41)
WINDOWS = [Window("code", tuple(int(t) for t in portable_tokens(200, seed=i, name="judged"))) for i in range(2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    write_tiny_llama(SPEC, path)
    return path


def readings(base: Path, tmp_path: Path, topk: int, *ways: str) -> list[Reading]:
    directory = write_tiny_index(tmp_path / "index", base, IndexSizes(2, 16, 16, topk), SPEC.hidden_size, [0, 1])
    with open_checkpoint(base) as checkpoint:
        return read(checkpoint, open_index(directory), WINDOWS, ways, lambda *_: None)  # type: ignore[arg-type]


def test_blocks_that_hold_everything_change_nothing(base: Path, tmp_path: Path) -> None:
    dense, *others = readings(base, tmp_path, 13, "index", "first and recent", "oracle")
    assert dense.way == "dense"
    assert dense.losses.shape == (2, 199)
    for reading in others:
        assert reading.change(dense)[0] == pytest.approx(0, abs=1e-5)


def test_fewer_blocks_change_what_comes_after_them(base: Path, tmp_path: Path) -> None:
    dense, index, recent, oracle = readings(base, tmp_path, 3, "index", "first and recent", "oracle")
    for reading in (index, recent, oracle):
        difference = (reading.losses - dense.losses).abs()
        assert difference[:, :47].max() < 1e-4  # three blocks of 16 tokens
        assert difference[:, 47:].max() > 1e-3
    # The oracle keeps most of the attention, so its predictions stay nearest.
    distance = {r.way: float((r.losses - dense.losses).pow(2).mean()) for r in (index, recent, oracle)}
    assert distance["oracle"] == min(distance.values())


def test_perplexity_is_that_of_the_log_likelihoods(base: Path, tmp_path: Path) -> None:
    (dense,) = readings(base, tmp_path, 3, "dense")
    assert dense.perplexity() == pytest.approx(math.exp(float(dense.losses.mean())), rel=1e-5)
    assert dense.perplexity(0.5) == pytest.approx(math.exp(float(dense.losses[:, 99:].mean())), rel=1e-5)
    assert dense.change(dense) == (0.0, 0.0)
    other = Reading("index", dense.losses + 0.01)
    assert other.change(dense, 0.5)[0] == pytest.approx(math.expm1(0.01), rel=1e-4)


def test_masses_are_those_of_the_weights() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(20, 4, 8), torch.randn(50, 2, 8)
    positions = torch.arange(30, 50)
    mass = block_masses(q, k, positions, 16, 8**-0.5)
    assert mass.shape == (20, 2, 4)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones(20, 2))
    # V that is 1 in one block alone gives that block's mass, as attention computes it.
    for block in range(4):
        v = torch.zeros(50, 2, 8)
        v[block * 16 : block * 16 + 16] = 1.0
        every = torch.arange(4, dtype=torch.int32).expand(20, 2, 4)
        every = torch.where(every <= (positions // 16)[:, None, None], every, -1).to(torch.int32)
        out = attend_blocks(q, k, v, every, query_start=30, block_tokens=16)
        torch.testing.assert_close(out.view(20, 2, 2, 8).mean(dim=(2, 3)), mass[:, :, block], rtol=1e-4, atol=1e-5)


def test_best_blocks_are_the_largest_and_the_forced_ones() -> None:
    mass = torch.tensor([[[0.1, 0.4, 0.2, 0.3, 0.0]]])
    assert top_blocks(mass, torch.tensor([3]), 2, 1, 0).tolist() == [[[1, 3]]]
    assert top_blocks(mass, torch.tensor([3]), 3, 2, 0).tolist() == [[[1, 2, 3]]]
    assert top_blocks(mass, torch.tensor([3]), 2, 1, 1).tolist() == [[[0, 3]]]
    assert top_blocks(mass, torch.tensor([1]), 4, 1, 0).tolist() == [[[0, 1, -1, -1]]]


def test_ways_without_an_index_are_refused(base: Path) -> None:
    with open_checkpoint(base) as checkpoint, pytest.raises(ArgumentError, match="without an index"):
        read(checkpoint, None, WINDOWS, ["index"], lambda *_: None)


def test_the_command_reads_files(base: Path, tmp_path: Path) -> None:
    write_tiny_index(tmp_path / "index", base, IndexSizes(2, 16, 16, 3), SPEC.hidden_size, [0, 1])
    (tmp_path / "text.md").write_text("some words and others\n" * 300)
    options = ["--text", str(tmp_path / "text.md"), "--windows", "2", "--window-tokens", "128", "--json"]
    done = CliRunner().invoke(main, ["eval", str(base), "--index", str(tmp_path / "index"), *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["tokens"] == 2 * 127
    assert [reading["way"] for reading in report["readings"]] == ["dense", "index", "first and recent"]
    assert report["readings"][0]["all"]["change"] == 0.0
    assert report["readings"][1]["quarter_1"]["change"] == pytest.approx(0, abs=1e-5)
    assert "recall" not in report


def test_the_command_reads_a_model_that_was_trained_sparse(tmp_path: Path) -> None:
    write_tiny_m3(TinyM3Spec("judged-m3", block_tokens=32, topk=5, seed=5), tmp_path / "m3")
    (tmp_path / "text.md").write_text("some words and others\n" * 300)
    options = ["--text", str(tmp_path / "text.md"), "--windows", "2", "--window-tokens", "512", "--recall", "--json"]
    done = CliRunner().invoke(main, ["eval", str(tmp_path / "m3"), *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [reading["way"] for reading in report["readings"]] == ["dense", "index", "first and recent"]
    assert {one["layer"] for one in report["recall"]} == {1, 2}
    assert all(0 < one["mass"] <= one["oracle"] + 1e-6 and 0 < one["blocks"] <= 1 for one in report["recall"])


@pytest.mark.parametrize("topk", [3, 13])
def test_recall_is_that_of_the_chosen_blocks(base: Path, tmp_path: Path, topk: int) -> None:
    directory = write_tiny_index(tmp_path / "index", base, IndexSizes(2, 16, 16, topk), SPEC.hidden_size, [1])
    with open_checkpoint(base) as checkpoint:
        found = recall(checkpoint, open_index(directory), WINDOWS, lambda *_: None)
    assert [(one.layer, one.group) for one in found] == [(1, 0), (1, 1)]
    for one in found:
        if topk == 13:  # every block
            assert one.recall.mass == pytest.approx(1)
            assert one.recall.oracle == pytest.approx(1)
            assert one.recall.blocks == 1.0
        else:
            assert one.recall.mass < one.recall.oracle < 1
            assert one.recall.blocks < 1


def test_recall_needs_something_sparse(base: Path) -> None:
    with open_checkpoint(base) as checkpoint, pytest.raises(ArgumentError, match="has no sparse layer"):
        recall(checkpoint, None, WINDOWS, lambda *_: None)


def test_recall_of_a_dense_model_is_refused_before_anything_is_read(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.md"
    text.write_text("some words and others\n" * 300)
    options = ["--text", str(text), "--windows", "1", "--window-tokens", "64", "--recall"]
    done = CliRunner().invoke(main, ["eval", str(base), *options])
    assert done.exit_code == 1
    assert "has no sparse layer" in done.stderr
    assert "1 of 1" not in done.stderr


def test_a_minimax_m3_without_sparse_layers_is_dense(tmp_path: Path) -> None:
    write_tiny_m3(TinyM3Spec("dense", sparse_layers=(0, 0, 0)), tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(ArgumentError, match="has no sparse layer"):
            recall(checkpoint, None, WINDOWS, lambda *_: None)
        with pytest.raises(ArgumentError, match="without an index there is only dense"):
            read(checkpoint, None, WINDOWS, ("index",), lambda *_: None)


def test_a_server_scores_the_windows(tmp_path: Path) -> None:
    write_tiny_llama(SPEC, tmp_path / "model")
    text = tmp_path / "text.md"
    text.write_text("some words and others\n" * 300)
    shape = ["--text", str(text), "--windows", "2", "--window-tokens", "32", "--json"]
    with running_server(str(tmp_path / "model"), log=tmp_path / "log") as server:
        done = CliRunner().invoke(main, ["eval", "model", "--url", server.base_url, *shape])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    with freehold.LLM(tmp_path / "model") as llm:
        losses = []
        for begin in (0, 128):
            ids = llm.encode(text.read_text()[begin : begin + 128])
            likely = llm.logits(ids).log_softmax(dim=-1)[:-1]
            losses.append(-likely.gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
    shortest = min(map(len, losses))
    assert (report["windows"], report["window_tokens"]) == (2, shortest + 1)
    wanted = math.exp(float(torch.stack([row[:shortest] for row in losses]).mean()))
    assert report["readings"][0]["all"]["perplexity"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("option", [["--way", "index"], ["--recall"], ["--index", "none"]])
def test_a_server_decides_how_it_reads(option: list[str]) -> None:
    done = CliRunner().invoke(main, ["eval", "m", "--url", "http://127.0.0.1:9/v1", *option])
    assert done.exit_code == 1
    assert f"{option[0]} and --url exclude each other" in done.stderr


def test_windows_that_were_read_are_not_read_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(write_tiny_index(tmp_path / "index", base, IndexSizes(2, 16, 16, 3), SPEC.hidden_size, [0, 1]))
    seen: list[str] = []

    def look(windows: list[Window]) -> list[Reading]:
        with open_checkpoint(base) as checkpoint:
            return read(checkpoint, index, windows, ["index"], lambda *_: None, work=tmp_path / "work")

    losses = WindowReader.losses

    def counted(self: WindowReader, token_ids: Any, observer: Any = None) -> Any:
        seen.append("read")
        return losses(self, token_ids, observer)

    monkeypatch.setattr(WindowReader, "losses", counted)
    look(WINDOWS[:1])
    assert len(seen) == 2  # dense, and with the index
    fresh = look(WINDOWS)
    assert len(seen) == 4
    files = sorted((tmp_path / "work").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:100])
    again = look(WINDOWS)
    assert len(seen) == 5  # of four files one was half a file
    for one, other in zip(fresh, again, strict=True):
        assert torch.equal(one.losses, other.losses)


def test_losses_that_are_not_those_that_were_kept_are_read_again(base: Path, tmp_path: Path) -> None:
    def look() -> torch.Tensor:
        with open_checkpoint(base) as checkpoint:
            return read(checkpoint, None, WINDOWS[:1], ["dense"], lambda *_: None, work=tmp_path)[0].losses

    fresh = look()
    (kept,) = tmp_path.iterdir()
    data = bytearray(kept.read_bytes())
    data[-2] ^= 0x40
    kept.write_bytes(data)
    assert torch.equal(look(), fresh)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def evaluated(base: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["eval", str(base), *options])
    assert done.exit_code == 1, done.output
    return done.stderr


def test_windows_longer_than_the_context_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("some words and others\n" * 300)
    shape = ["--text", str(tmp_path / "text.md"), "--windows", "1", "--window-tokens"]
    assert "window_tokens is 2049; the model's context has 2048" in evaluated(base, *shape, "2049")
    assert "recall looks at one query of 64" in evaluated(base, *shape, "63", "--recall")
    (tmp_path / "file").write_text("")
    assert "error: [Errno 20] Not a directory" in evaluated(base, *shape, "32", "--work", str(tmp_path / "file" / "x"))


def test_predictions_that_are_no_numbers_have_no_perplexity() -> None:
    for loss in (math.nan, math.inf, 1000.0):
        with pytest.raises(FreeholdError, match="for which there is no perplexity"):
            Reading("dense", torch.full((1, 31), loss)).as_json(Reading("dense", torch.ones(1, 31)))


def test_what_another_index_gave_is_read_again(base: Path, tmp_path: Path) -> None:
    found = []
    for topk in (3, 5):
        directory = write_tiny_index(
            tmp_path / f"index-{topk}", base, IndexSizes(2, 16, 16, topk), SPEC.hidden_size, [0, 1]
        )
        with open_checkpoint(base) as checkpoint:
            found += read(
                checkpoint, open_index(directory), WINDOWS, ["index"], lambda *_: None, work=tmp_path / "work"
            )[1:]
    assert not torch.equal(found[0].losses, found[1].losses)

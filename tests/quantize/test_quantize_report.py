"""What a quantisation says of itself: errors by layer, perplexity and chosen blocks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import freehold
from freehold.cli.main import main
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model import index_branches
from freehold.model.index_branch import IndexSizes
from freehold.plan.subject import open_subject
from freehold.quantize.journal import Done
from freehold.quantize.report import Reading, agreement, first_tokens, layer_errors, read_tokens
from support.tiny_index import write_tiny_index
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3

SPEC = TinyM3Spec("report", (0, 1), (0, 1), num_experts=4, topk=2, block_tokens=32, expert_size=64)
TEXT = "The block is the atom. " * 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "source"
    write_tiny_m3(SPEC, path)
    return path


def _ids(model: Path, most: int) -> list[int]:
    with open_checkpoint(model) as checkpoint:
        return first_tokens(checkpoint, TEXT, most)


def test_errors_are_summed_by_layer() -> None:
    done = [
        Done("model.embed_tokens.weight", "Q8_0", 1.0, 100.0),
        Done("model.layers.10.mlp.up_proj.weight", "Q4_1", 9.0, 100.0),
        Done("model.layers.2.mlp.up_proj.weight", "Q4_1", 3.0, 50.0),
        Done("model.layers.2.mlp.down_proj.weight", "Q4_1", 1.0, 50.0),
        Done("model.layers.3.input_layernorm.weight", "F32", 0.0, 0.0),
        Done("blk.4.attn_q.weight", "Q4_1", 0.0, 0.0),
    ]
    assert {name: error.relative for name, error in layer_errors(done).items()} == pytest.approx(
        {"outside the layers": 0.1, "layer 2": 0.2, "layer 10": 0.3}
    )
    assert list(layer_errors(done)) == ["outside the layers", "layer 2", "layer 10"]


def test_perplexity_is_that_of_the_logits(directory: Path) -> None:
    ids = _ids(directory, 300)
    reading = read_tokens(directory, ids)
    with freehold.LLM(directory) as llm:
        assert ids == llm.tokenizer.encode(TEXT)[:300]
        logits = llm.logits(ids)
    loss = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]))
    assert reading.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-6)
    assert reading.blocks[1].shape[0] == len(ids) == 300


def test_a_text_without_a_next_token(directory: Path) -> None:
    with pytest.raises(ArgumentError, match="the text has 1 tokens"):
        _ids(directory, 1)


@pytest.mark.parametrize("nats", [800.0, math.nan, math.inf])
def test_a_model_that_predicts_nothing_is_named(nats: float) -> None:
    with pytest.raises(FreeholdError, match=r"some-model: a token of the text costs (800|nan|inf) nats"):
        _ = Reading(Path("some-model"), torch.full((3,), -nats), {}).perplexity


def test_agreement_counts_blocks_that_both_chose() -> None:
    likely = torch.zeros(1)
    some = Reading(Path("m"), likely, {1: torch.tensor([[[0, 1, 2]], [[0, 3, -1]]])})
    others = Reading(Path("m"), likely, {1: torch.tensor([[[0, 2, 5]], [[1, 3, -1]]])})
    assert agreement(some, others) == 3 / 5
    assert agreement(some, some) == 1.0
    assert agreement(Reading(Path("m"), likely, {}), Reading(Path("m"), likely, {})) is None


def test_a_model_with_a_branch_is_compared_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, text = LLAMAS["plain"], tmp_path / "text.txt"
    write_tiny_llama(spec, tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        hidden = checkpoint.config["hidden_size"]
    bare = open_subject(str(tmp_path / "model"), "none").config
    sizes = IndexSizes(bare.num_kv_heads, bare.head_dim, 32, 2)
    write_tiny_index(tmp_path / "branches" / "one", tmp_path / "model", sizes, hidden, [1])
    dense = read_tokens(tmp_path / "model", _ids(tmp_path / "model", 300)).perplexity
    monkeypatch.setattr(index_branches, "BRANCHES", tmp_path / "branches")
    text.write_text(TEXT)
    arguments = [
        "quantize",
        str(tmp_path / "model"),
        str(tmp_path / "out"),
        "--bits",
        "8",
        "--text",
        str(text),
        "--json",
    ]
    done = CliRunner().invoke(main, [*arguments, "--text-tokens", "300"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["perplexity_before"] == dense
    assert result["block_agreement"] is None


def test_the_command(directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["quantize", str(directory), str(tmp_path / "out"), "--bits", "8", "--text", str(text)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bytes"] < result["bytes_before"] / 2
    assert set(result["relative_errors"]) == {"outside the layers", "layer 0", "layer 1"}
    assert all(0 < error < 0.01 for error in result["relative_errors"].values())
    assert abs(result["perplexity_change"]) < 0.02
    assert result["perplexity"] == read_tokens(tmp_path / "out", _ids(directory, 4096)).perplexity
    assert 0.9 < result["block_agreement"] <= 1.0
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_the_command_for_people(directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    done = CliRunner().invoke(
        main, ["quantize", str(directory), str(tmp_path / "out"), "--bits", "4", "--text", str(text)]
    )
    assert done.exit_code == 0, done.output
    for part in ("before", "layer 1: 0.", "perplexity over", "blocks chosen as before: "):
        assert part in done.output


@pytest.mark.parametrize(
    ("content", "tokens", "message"),
    [("", "10", "the text has 0 tokens"), (TEXT * 20, "9000", "over 9000 tokens; the model was made for 8192")],
)
def test_a_text_that_cannot_be_read_is_refused_before_anything_is_written(
    directory: Path, tmp_path: Path, content: str, tokens: str, message: str
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(content)
    arguments = ["quantize", str(directory), str(out), "--bits", "8", "--text", str(text), "--text-tokens", tokens]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert not out.exists()


def test_a_text_that_is_no_utf_8_is_refused_before_anything_is_written(directory: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "latin.txt", tmp_path / "out"
    text.write_bytes(b"caf\xe9 " * 1000)
    done = CliRunner().invoke(main, ["quantize", str(directory), str(out), "--bits", "8", "--text", str(text)])
    assert done.exit_code == 1
    assert done.output.startswith(f"error: {text} is no UTF-8 text: byte 3 is 0xe9")
    assert "iconv" in done.output
    assert not out.exists()

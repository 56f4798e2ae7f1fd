"""`freehold bench slice` in small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold.bench.slice_checkpoint import SMALL, slice_config, write_slice
from freehold.cli.main import main
from freehold.core.errors import ArgumentError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_release import M3_TEXT
from support import published_m3

SHORTENED = {"num_hidden_layers", "moe_layer_freq", "sparse_attention_config", "model_type"}


def test_the_sizes_are_the_published_ones() -> None:
    published = published_m3.text_config()
    for name, value in M3_TEXT.items():
        if name not in SHORTENED:
            assert published[name] == value, name
    ours, theirs = M3_TEXT["sparse_attention_config"], published["sparse_attention_config"]
    for name in ours.keys() - {"sparse_attention_freq", "sparse_disable_index_value"}:
        assert ours[name] == theirs[name], name
    config = MiniMaxM3Config.from_hf(slice_config(small=False), "slice")
    assert config.sparse_attention == config.moe == (False, True, True)


def test_both_ways_answer_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    options = ["--quick", "--threads", "1", "--json", "--directory", str(tmp_path / "slice")]
    done = CliRunner().invoke(main, ["bench", "slice", *options])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout.splitlines()[-1])
    memory, disk = data["runs"]["all in RAM"], data["runs"]["experts from disk"]
    assert memory["expert_places"] is None
    assert 2 <= disk["expert_places"] < 16
    assert disk["weight_nbytes"] < memory["weight_nbytes"]
    experts = disk["answer"]["decode_experts"]
    assert experts["misses"] > 0 < experts["nbytes"]
    assert experts["hits"] + experts["misses"] == 2 * 3 * 4  # layers, tokens after the first, experts


def test_the_checkpoint_is_written_once(tmp_path: Path) -> None:
    said: list[str] = []
    write_slice(tmp_path, slice_config(small=True), said.append)
    assert len(said) == 4
    write_slice(tmp_path, slice_config(small=True), said.append)
    assert len(said) == 4
    with open_checkpoint(tmp_path) as checkpoint:
        kinds = {info.dtype for info in checkpoint.tensors.values()}
        assert kinds == {"Q4_1", "Q8_0", "F32"}
        expert = checkpoint.tensor("model.layers.1.block_sparse_moe.experts.3.w1.weight")
    assert expert.shape == (SMALL["intermediate_size"], SMALL["hidden_size"])
    assert float(expert.std()) == pytest.approx(SMALL["hidden_size"] ** -0.5, rel=0.05)  # type: ignore[operator]
    with pytest.raises(ArgumentError, match="holds another checkpoint"):
        write_slice(tmp_path, slice_config(small=False), said.append)

"""Which index branch a model gets: the one that is named, the one that came with Freehold for its weights, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

import freehold
from freehold.core.errors import FreeholdError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model import index_branches
from freehold.model.index_branch import IndexSizes
from freehold.model.index_branches import index_for
from freehold.model.llama import LlamaConfig
from support.tiny_index import write_tiny_index
from support.tiny_llama import TinyLlamaSpec, write_tiny_llama

SPEC = TinyLlamaSpec("branched", num_layers=2, seed=12)
OTHER = TinyLlamaSpec("other", num_layers=2, seed=13)
PROMPT = [int(i) for i in range(5, 165)]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, and a branch for the first that comes with Freehold."""
    write_tiny_llama(SPEC, tmp_path / "first")
    write_tiny_llama(OTHER, tmp_path / "second")
    sizes = IndexSizes(2, 16, 16, 3)
    write_tiny_index(tmp_path / "branches" / "first", tmp_path / "first", sizes, SPEC.hidden_size, [0, 1])
    monkeypatch.setattr(index_branches, "BRANCHES", tmp_path / "branches")
    return tmp_path


def test_weights_get_the_branch_that_was_made_for_them(models: Path) -> None:
    with open_checkpoint(models / "first") as first, open_checkpoint(models / "second") as second:
        assert index_for(first, "auto").base_digest == first.digest()
        assert index_for(second, "auto") is None
        assert index_for(first, "none") is None
        assert index_for(first, str(models / "branches" / "first")).base_digest == first.digest()


def test_without_any_branch_models_stay_dense(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_branches, "BRANCHES", models / "nowhere")
    with open_checkpoint(models / "first") as first:
        assert index_for(first, "auto") is None


def test_a_model_reads_chosen_blocks_and_says_so(models: Path) -> None:
    with freehold.LLM(models / "first") as auto, freehold.LLM(models / "first", index="none") as dense:
        assert "2 layers read 3 chosen blocks of 16 tokens (index auto)" in auto.description
        assert "chosen blocks" not in dense.description
        near, far = (auto.logits(PROMPT) - dense.logits(PROMPT)).abs().amax(dim=1).split([48, len(PROMPT) - 48])
        assert near.max() < 1e-4  # three blocks hold everything
        assert far.max() > 1e-3


def test_a_directory_that_is_none_is_named(models: Path) -> None:
    with pytest.raises(FreeholdError, match="no-such-place"):
        freehold.LLM(models / "first", index=str(models / "no-such-place"))


@pytest.mark.model
def test_the_default_model_comes_with_a_branch(default_model: Path) -> None:
    with open_checkpoint(default_model) as checkpoint:
        branch = index_for(checkpoint, "auto")
        assert branch is not None
        assert (branch.sizes.block_tokens, branch.sizes.topk, len(branch.sparse_layers)) == (128, 16, 27)
        branch.check(checkpoint, LlamaConfig.from_gguf(checkpoint.config, checkpoint.tensors, "the default model"))

"""An index branch beside a model that was trained dense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import freehold
from freehold.core.errors import ConfigError, TensorMismatchError
from freehold.model.index_branch import IndexSizes
from support.portable_random import portable_tokens
from support.tiny_index import write_tiny_index
from support.tiny_llama import TinyLlamaSpec, write_tiny_llama
from support.tiny_m3 import SHAPES, write_tiny_m3

SPEC = TinyLlamaSpec("sparse", num_layers=3, seed=21)
SIZES = IndexSizes(SPEC.num_kv_heads, 16, 16, 3)
TOKENS = [int(token) for token in portable_tokens(200, seed=5, name="sparse")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    write_tiny_llama(SPEC, path)
    return path


def sidecar(tmp_path: Path, base: Path, sizes: IndexSizes = SIZES, layers: tuple[int, ...] = (0, 2), **changes) -> str:
    return str(write_tiny_index(tmp_path / "index", base, sizes, SPEC.hidden_size, list(layers), **changes))


def logits(base: Path, **options) -> torch.Tensor:
    with freehold.LLM(base, **options) as llm:
        return llm.logits(TOKENS)


def test_enough_blocks_are_the_dense_model(base: Path, tmp_path: Path) -> None:
    every = sidecar(tmp_path, base, IndexSizes(SPEC.num_kv_heads, 16, 16, 13))
    torch.testing.assert_close(logits(base, index=every), logits(base), rtol=1e-4, atol=1e-4)


def test_fewer_blocks_are_another_model_which_both_implementations_agree_on(base: Path, tmp_path: Path) -> None:
    index = sidecar(tmp_path, base)
    native = logits(base, index=index)
    dense = logits(base)
    torch.testing.assert_close(native[:48], dense[:48], rtol=1e-4, atol=1e-4)  # 3 blocks of 16 tokens
    assert (native[48:] - dense[48:]).abs().max() > 0.01
    torch.testing.assert_close(native, logits(base, index=index, impl="reference"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(base, index=index, allow_dense=True), dense, rtol=1e-4, atol=1e-4)


def test_the_same_bits_in_any_chunks(base: Path, tmp_path: Path) -> None:
    index = sidecar(tmp_path, base)
    whole = logits(base, index=index)
    for chunk in (1, 7, 64):
        assert torch.equal(logits(base, index=index, prefill_chunk=chunk), whole)


def test_it_says_which_blocks_it_read(base: Path, tmp_path: Path) -> None:
    with freehold.LLM(base, index=sidecar(tmp_path, base)) as llm:
        chosen = llm.selected_blocks(TOKENS)
        assert llm.engine.cache.block_tokens == 16
    assert sorted(chosen) == [0, 2]
    for ids in chosen.values():
        assert ids.shape == (200, SPEC.num_kv_heads, 3)
        local = torch.arange(200) // 16
        assert (ids == local[:, None, None]).any(-1).all()


def test_blocks_of_another_branch_are_not_used(base: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    one, other = sidecar(tmp_path / "a", base), sidecar(tmp_path / "b", base, layers=(1,))
    prompt = "abcdefgh" * 20
    for index in (one, other, "none"):
        with freehold.LLM(base, index=index, store_dir=store, default_block_tokens=16) as llm:
            assert llm.generate(prompt, max_tokens=2).usage.cached_tokens == 0
    with freehold.LLM(base, index=one, store_dir=store) as llm:
        assert llm.generate(prompt, max_tokens=2).usage.cached_tokens > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_digest": "0" * 64}, "belongs to weights 0000000000000000"),
        ({"base_digest": None}, "'base_digest' is missing"),
        ({"model_type": "llama"}, "an index branch has 'freehold_index'"),
        ({"version": 2}, "'version' is 2"),
        ({"num_index_heads": 3}, "num_index_heads is 3; the model has 2"),
        ({"hidden_size": 64}, "hidden_size is 64; the model has 96"),
        ({"index_dim": 8}, "index_dim is 8; rotation needs at least 16"),
        ({"block_tokens": 24}, "block_tokens is 24"),
        ({"init_blocks": 3}, "init_blocks 3"),
        ({"sparse_layers": []}, r"sparse_layers is \[\]"),
        ({"sparse_layers": [0, "1"]}, "sparse_layers is"),
        ({"sparse_layers": [0, 3]}, "layer 3 is sparse; the model has 3 layers"),
        ({"pooling": "max"}, r"unknown keys \['pooling'\]"),
    ],
)
def test_a_branch_that_does_not_fit_is_refused(base: Path, tmp_path: Path, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        freehold.LLM(base, index=sidecar(tmp_path, base, **changes))


def test_missing_weights_are_named(base: Path, tmp_path: Path) -> None:
    index = sidecar(tmp_path, base, sparse_layers=[0, 1])
    with pytest.raises(TensorMismatchError, match=r"layers\.1\.q_proj\.weight"):
        freehold.LLM(base, index=index)


def test_a_model_with_a_branch_of_its_own_takes_no_other(base: Path, tmp_path: Path) -> None:
    write_tiny_m3(SHAPES["one_far_block"], tmp_path / "m3")
    with pytest.raises(ConfigError, match="has an index branch of its own"):
        freehold.LLM(tmp_path / "m3", index=sidecar(tmp_path, base))

"""Predicted bytes are those that the cache, the store and a loaded model really take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

import freehold
from freehold.bench.traffic import weight_nbytes
from freehold.core.blocks import LaneSpec
from freehold.core.config import EngineConfig, KvDtype
from freehold.core.errors import ArgumentError, ConfigError
from freehold.engine.memory import make_pool
from freehold.loading.checkpoint import TensorInfo, open_checkpoint
from freehold.loading.ggml_codes import ggml_codes
from freehold.model.base import Model
from freehold.model.compute import compute_for
from freehold.model.index_branch import IndexSizes
from freehold.model.index_branches import AUTO, index_for
from freehold.model.index_sidecar import open_index
from freehold.model.llama import Llama, LlamaConfig
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.registry import load_model, load_tokenizer, load_vision
from freehold.plan.lanes import cache_cost
from freehold.plan.part import part_of
from freehold.plan.plan import PlanSettings, make_plan, start_line
from freehold.plan.subject import Kind, StoredTensor, Subject, open_subject
from freehold.plan.weights import weight_cost
from freehold.quantize.job import quantize
from freehold.quantize.recipe import Bits
from support.quantised_m3 import Release, write_quantised_m3
from support.tiny_engine import LLAMA, M3
from support.tiny_index import write_tiny_index
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import SHAPES, write_tiny_m3, write_tiny_m3_gguf

WIDE = replace(M3, head_dim=40, index_dim=24, rotary_dim=16, block_tokens=48)
"""Widths that are no multiples of 16 and 8, so that lanes are padded."""


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [LLAMA, M3, WIDE], ids=["llama", "m3", "padded"])
def test_lanes_are_what_the_pool_allocates(config: LlamaConfig | MiniMaxM3Config, kv_dtype: KvDtype) -> None:
    model = unfilled(config)
    pool = make_pool(model, EngineConfig(cache_tokens=1000, kv_dtype=kv_dtype), 1000, "")
    cost = cache_cost(model.lane_specs, pool.block_tokens, kv_dtype)
    assert pool.num_slots == cost.blocks(1000)
    allocated = [sum(t.nbytes for t in lanes.tensors()) for lanes in pool.lanes]
    assert sum(allocated) == pool.num_slots * cost.block
    sparse = [n for n, spec in zip(allocated, model.lane_specs, strict=True) if spec.index_dim is not None]
    assert sum(sparse) == pool.num_slots * cost.sparse.total
    keys = sum(lanes.index.keys.nbytes for lanes in pool.lanes if lanes.index is not None)
    assert keys == pool.num_slots * cost.sparse.index_keys


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("source", ["F32", "NVFP4", "MXFP8"])
def test_rows_that_32_does_not_divide_are_planned_as_they_are_written(tmp_path: Path, source: str, bits: Bits) -> None:
    spec = SHAPES["release_selection"]
    assert spec.expert_size % 32
    if source == "F32":
        write_tiny_m3(spec, tmp_path / "packed")
    else:
        write_quantised_m3(spec, tmp_path, source)
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        quantize(checkpoint, tmp_path / "out", bits)
    planned = weight_cost(open_subject(str(tmp_path / "packed")), "int8" if bits == 8 else "int4")
    written = weight_cost(open_subject(str(tmp_path / "out")), "as-stored")
    assert planned.memory == written.memory
    assert (planned.place, planned.stored_expert) == (written.place, written.stored_expert)


@pytest.mark.parametrize("release", ["NVFP4", "MXFP8"])
def test_the_least_budget_of_experts_that_is_named_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: Release
) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    path = write_quantised_m3(SHAPES["release_selection"], tmp_path, release) / "packed"
    subject = open_subject(str(path))
    (way,) = (r.way for r in make_plan(subject, PlanSettings(context=8192)).rows if r.way.name == "experts from disk")
    plan = make_plan(subject, PlanSettings(context=8192, ram=way.need))
    (row,) = (row for row in plan.rows if row.way.name == way.name)
    assert row.way.fits
    budget = int(start_line(plan, row).rpartition("--expert-budget ")[2])
    with freehold.LLM(path, expert_budget=budget):
        pass
    with pytest.raises(ConfigError, match=f"two experts of this model take {budget}"):
        freehold.LLM(path, expert_budget=budget - 1)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
def test_pages_are_what_the_pool_allocates(tmp_path: Path, kv_dtype: KvDtype) -> None:
    model = unfilled(M3)
    cost = cache_cost(model.lane_specs, M3.block_tokens, kv_dtype)
    config = EngineConfig(
        cache_tokens=300 * M3.block_tokens,
        kv_dtype=kv_dtype,
        store_dir=str(tmp_path),
        ram_budget=70 * cost.frame + cost.frame // 2,
    )
    pool = make_pool(model, config, 1000, "weights")
    assert pool.disk is not None
    try:
        allocated = sum(t.nbytes for lanes in pool.lanes for t in lanes.tensors())
        assert allocated == 300 * cost.block_without_pages + 70 * cost.frame
        assert pool.disk.store.layout.record_bytes == cost.stored
    finally:
        pool.disk.store.close()


def test_the_published_shape_costs_what_its_specification_says() -> None:
    sparse, dense = LaneSpec(4, 128, 128), LaneSpec(4, 128)
    cost = cache_cost((dense,) * 3 + (sparse,) * 57, 128, "bfloat16")
    assert (cost.dense.kv + cost.sparse.kv) / 128 == 122_880
    assert cost.sparse.index_keys / 128 == 14_592
    assert cost.sparse.half_codes / 57 / 128 == 67.25  # what the log measured as bytes of half codes a key, rounded


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "gguf"])
def test_m3_weights_are_what_a_loaded_model_holds(tmp_path: Path, kind: str) -> None:
    spec = SHAPES["mixed_layers" if kind != "gguf" else "release_selection"]
    path = tmp_path / ("m3.gguf" if kind == "gguf" else "m3")
    if kind == "gguf":
        write_tiny_m3_gguf(spec, path)
    else:
        write_tiny_m3(spec, path)
        convert(path, getattr(torch, kind))
    assert weight_cost(open_subject(str(path)), "as-stored").total == loaded_nbytes(path)


@pytest.mark.parametrize("name", ["plain", "tied", "mlp_bias"])
def test_llama_weights_are_what_a_loaded_model_holds(tmp_path: Path, name: str) -> None:
    write_tiny_llama(LLAMAS[name], tmp_path)
    assert weight_cost(open_subject(str(tmp_path)), "as-stored").total == loaded_nbytes(tmp_path)


def test_a_branch_costs_its_weights_and_its_lanes(tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS["plain"], tmp_path / "base")
    bare = open_subject(str(tmp_path / "base"))
    assert (bare.index, bare.sparse, bare.parameters.get("index")) == (None, frozenset(), None)
    sizes = IndexSizes(bare.config.num_kv_heads, bare.config.head_dim, 32, 3)
    branch = write_tiny_index(tmp_path / "branch", tmp_path / "base", sizes, bare.config.hidden_size, [1])
    subject = open_subject(str(tmp_path / "base"), str(branch))
    with open_checkpoint(tmp_path / "base") as checkpoint:
        model = load_model(checkpoint, compute_for("native")[0], index=open_index(branch))
    assert weight_cost(subject, "as-stored").total == weight_nbytes(model)
    assert subject.lane_specs == tuple(model.lane_specs)
    plan = make_plan(subject, PlanSettings())
    assert plan.cache.block_tokens == model.block_tokens == 32
    assert f"--index {branch}" in start_line(plan, plan.rows[0])


def test_a_branch_is_not_passed_over_where_it_cannot_go(tmp_path: Path) -> None:
    write_tiny_m3(SHAPES["mixed_layers"], tmp_path / "m3")
    with pytest.raises(ConfigError, match="has an index branch of its own"):
        open_subject(str(tmp_path / "m3"), str(tmp_path / "branch"))
    (tmp_path / "m3" / "model.safetensors").unlink()
    for model in (tmp_path / "m3", tmp_path / "m3" / "config.json"):
        with pytest.raises(ArgumentError, match="no weights that it could be for"):
            open_subject(str(model), str(tmp_path / "branch"))
    assert open_subject(str(tmp_path / "m3"), "none").index is not None


def test_bf16_is_what_a_checkpoint_in_bfloat16_takes(tmp_path: Path) -> None:
    write_tiny_m3(SHAPES["mixed_layers"], tmp_path / "m3")
    planned = weight_cost(open_subject(str(tmp_path / "m3")), "bf16")
    convert(tmp_path / "m3", torch.bfloat16)
    assert planned.total == loaded_nbytes(tmp_path / "m3")


GGML_KINDS = "Q2_K Q3_K Q4_0 Q4_1 Q4_K Q5_0 Q5_1 Q5_K Q6_K Q8_0 TQ1_0 MXFP4 IQ4_NL IQ4_XS IQ3_S".split()


@pytest.mark.parametrize("kind", GGML_KINDS)
def test_each_quantised_type_takes_what_its_codes_take(kind: str) -> None:
    shape, (block, nbytes) = (64, 512), gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    coded = ggml_codes(kind, shape, torch.zeros(64, 512 // block * nbytes, dtype=torch.uint8))
    bits = 32.0 if coded is None else coded.bits + 32 / coded.group * (1 if coded.offsets is None else 2)
    config = LLAMA
    stored = StoredTensor("x", Kind("attention", TensorInfo(shape, kind), 0, 64 * 512, kind))
    assert weight_cost(Subject(Path("x"), "files", config, (stored,)), "as-stored").total == 64 * 512 * bits / 8


@pytest.mark.model
def test_default_model_takes_what_was_predicted(default_model: Path) -> None:
    assert weight_cost(open_subject(str(default_model)), "as-stored").total == loaded_nbytes(default_model)


def unfilled(config: LlamaConfig | MiniMaxM3Config) -> Model:
    """A model without weights, which is enough for its lanes."""
    compute = compute_for("native")[0]
    return Llama(config, compute) if isinstance(config, LlamaConfig) else MiniMaxM3(config, compute)


def convert(directory: Path, dtype: torch.dtype) -> None:
    """Every matrix of the text model in another type; the router stays float32, as in the release."""
    path = directory / "model.safetensors"
    tensors = {
        name: tensor if tensor.ndim < 2 or part_of(name) in ("router", "vision") else tensor.to(dtype)
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)


def loaded_nbytes(path: Path) -> int:
    """Bytes of all tensors of the loaded model."""
    with open_checkpoint(path) as checkpoint:
        compute = compute_for("native")[0]
        vision = load_vision(checkpoint, compute, load_tokenizer(checkpoint))
        model = load_model(checkpoint, compute, index=index_for(checkpoint, AUTO))
        return weight_nbytes(model) + (0 if vision is None else weight_nbytes(vision))

"""Facts about the machine, its limits, and how much a model reads."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import torch

from freehold import kernels
from freehold.bench import floors as floors_module
from freehold.bench.floors import Floor, Floors, measure_floors
from freehold.bench.machine import Machine, cpu_name, peak_memory, resident_memory, this_machine
from freehold.bench.traffic import cache_elements_read, file_nbytes_read, weight_nbytes, weight_nbytes_read
from freehold.core.errors import ArgumentError
from freehold.kernels import using_threads
from freehold.loading.checkpoint import open_checkpoint
from support.tiny_engine import LLAMA, M3, tiny_model
from support.tiny_m3 import SHAPES, write_tiny_m3_gguf


def test_this_machine() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.isa == kernels.isa()
    assert machine.memory_nbytes > 2**28
    assert {"freehold", "torch"} <= machine.versions.keys()
    assert json.loads(json.dumps(machine.as_json()))["cpu"] == machine.cpu != ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 26, model 2)"),
        ("model name\t: Some CPU @ 2GHz\n", "Some CPU @ 2GHz"),
    ],
)
def test_cpu_name(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_cpu_name_without_linux(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing")


def test_other_work_is_reported() -> None:
    def machine(load: float | None) -> Machine:
        return Machine("cpu", 1, "avx2", 2**30, load, "Linux", "3.12", {})

    assert machine(0.2).warnings() == machine(None).warnings() == ()
    assert "3.1" in machine(3.1).warnings()[0]


def test_peak_memory_keeps_what_resident_memory_lost() -> None:
    size = 64 * 2**20
    before = peak_memory()
    with mmap.mmap(-1, size) as block:  # unlike an allocator's, its memory goes back at once
        block.write(b"1" * size)
        held = resident_memory()
    assert held >= size
    assert peak_memory() >= max(before, held) - 2**22  # Linux counts pages in batches for each core
    assert resident_memory() <= held - size // 2


@pytest.fixture
def small_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors_module, "READ_NBYTES", 8 * 2**20)
    monkeypatch.setattr(floors_module, "MATRIX_SIZE", 128)


@pytest.mark.usefixtures("small_floors")
@pytest.mark.parametrize("quick", [False, True])
def test_floors_are_positive_and_name_what_reached_them(quick: bool) -> None:
    before = torch.get_num_threads(), kernels.threads()
    floors = measure_floors(1, quick=quick)
    for floor in (floors.read, floors.float32, floors.bfloat16):
        assert floor.per_second > 1e6
        assert floor.reached_by in ("torch.sum", "our one-row product", "torch.mm", "our product")
    assert json.loads(json.dumps(floors.as_json()))["threads"] == 1
    assert (torch.get_num_threads(), kernels.threads()) == before


@pytest.mark.usefixtures("small_floors")
def test_a_floor_is_the_fastest_try_and_counts_all_bytes() -> None:
    # The clock's readings are 0, 1, 3, 6, 10, ...: the first try, of 1 s, is the fastest.
    ticks = iter(range(10000))
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += next(ticks)
        return now

    floors = measure_floors(1, clock=clock)
    assert floors.read == Floor(8 * 2**20, "torch.sum")


def test_floors_need_a_thread() -> None:
    with pytest.raises(ArgumentError, match="threads is 0"):
        measure_floors(0)


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads(), kernels.threads()

    def fail() -> None:
        with using_threads(before[1] + 1):
            assert (torch.get_num_threads(), kernels.threads()) == (before[1] + 1,) * 2
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert (torch.get_num_threads(), kernels.threads()) == before


FLOORS = Floors(2, read=Floor(10.0, "a"), float32=Floor(100.0, "b"), bfloat16=Floor(400.0, "c"))


def test_the_slower_of_reading_and_computing_is_the_limit() -> None:
    assert FLOORS.seconds(flops=1000.0, nbytes=10.0) == 10.0
    assert FLOORS.seconds(flops=1000.0, nbytes=300.0) == 30.0
    assert FLOORS.seconds(1000.0, 10.0, torch.bfloat16) == 2.5


def test_more_threads_can_do_what_fewer_did() -> None:
    fewer = Floors(1, read=Floor(20.0, "d"), float32=Floor(50.0, "e"), bfloat16=Floor(400.0, "f"))
    raised = FLOORS.at_least(fewer)
    assert (raised.threads, raised.read, raised.float32) == (2, fewer.read, FLOORS.float32)


def test_weights_of_a_tied_model_are_read_whole() -> None:
    model = tiny_model("llama")
    c = LLAMA
    kv = c.num_kv_heads * c.head_dim
    q = c.num_q_heads * c.head_dim
    layer = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size) + 2 * c.hidden_size
    parameters = c.vocab_size * c.hidden_size + c.num_layers * layer + c.hidden_size
    assert weight_nbytes_read(model) == weight_nbytes(model)
    assert weight_nbytes_read(tiny_model("llama", impl="reference")) == 4 * parameters
    # Packed panels hold whole multiples of 64 outputs, so they may be larger, and never smaller.
    assert 4 * parameters <= weight_nbytes(model) < 8 * parameters


def test_only_active_experts_and_no_input_embedding_are_read() -> None:
    model = tiny_model("m3", impl="reference")
    c = M3
    experts = 2 * c.num_experts * 3 * c.hidden_size * c.expert_intermediate_size * 4
    embedding = c.vocab_size * c.hidden_size * 4
    inactive = experts * (c.num_experts - c.num_experts_per_token) // c.num_experts
    assert weight_nbytes_read(model) == weight_nbytes(model) - embedding - inactive


def test_dense_layers_read_the_whole_cache_and_sparse_ones_chosen_blocks() -> None:
    assert cache_elements_read(tiny_model("llama"), 100) == 100 * LLAMA.num_layers * 2 * 2 * 24
    model, token = tiny_model("m3"), 2 * M3.num_kv_heads * M3.head_dim
    chosen = M3.topk * M3.block_tokens
    assert cache_elements_read(model, 500) == 500 * token + 2 * (chosen * token + 500 * M3.index_dim)
    assert cache_elements_read(model, 8) == 3 * 8 * token + 2 * 8 * M3.index_dim


def test_bytes_of_a_gguf_file(tmp_path: Path) -> None:
    spec = SHAPES["release_selection"]
    write_tiny_m3_gguf(spec, tmp_path / "tiny.gguf")
    with open_checkpoint(tmp_path / "tiny.gguf") as checkpoint:
        sizes = {name: checkpoint.extent(name).nbytes for name in checkpoint.tensors}
        read = file_nbytes_read(checkpoint)
    experts = sum(nbytes for name, nbytes in sizes.items() if "_exps." in name)
    assert experts > 0
    inactive = experts * (spec.num_experts - spec.experts_per_token) // spec.num_experts
    assert read == sum(sizes.values()) - sizes["token_embd.weight"] - inactive

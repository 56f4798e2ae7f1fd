"""Every quantised type of ggml reads as gguf itself dequantises it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from freehold import kernels
from freehold.core.errors import LoadError
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.ggml_blocks import DECODERS
from freehold.loading.gguf import GgufCheckpoint
from support.checkpoints_memory import mapped_file
from support.checkpoints_raw import at_most_allocated, gguf_bytes, tensor_info

Kind = gguf.GGMLQuantizationType

PLAIN = {Kind.F32, Kind.F16, Kind.BF16, Kind.F64, Kind.I8, Kind.I16, Kind.I32, Kind.I64}
UNREADABLE = {Kind.Q8_1, Kind.Q8_K, Kind.Q1_0}  # intermediate products, and one that gguf only knows by name
QUANTISED = sorted(set(gguf.GGML_QUANT_SIZES) - PLAIN - UNREADABLE)
WRITTEN_BY_GGUF = (
    Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4,
)  # fmt: skip
SHAPES = [(1, 256), (33, 768), (3, 5, 512), (256,), (17, 1280)]


def write(path: Path, kind: Kind, shape: tuple[int, ...], blocks: np.ndarray) -> Path:  # type: ignore[type-arg]
    path.write_bytes(gguf_bytes((), [tensor_info("x", shape[::-1], kind, 0)], blocks.tobytes()))
    return path


def same(left: torch.Tensor, right: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Equal shapes and bits, the sign of zero included; what is not a number counts as equal to itself."""
    found, nan = left.numpy(), np.isnan(right)
    return (
        left.dtype == torch.float32
        and found.shape == right.shape
        and np.array_equal(np.isnan(found), nan)
        and np.array_equal(found.view(np.uint32)[~nan], right.view(np.uint32)[~nan])
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_blocks_of_random_bytes(tmp_path: Path, kind: Kind, shape: tuple[int, ...]) -> None:
    block, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    row_nbytes = shape[-1] // block * block_nbytes
    blocks = np.random.default_rng(kind).integers(0, 256, (*shape[:-1], row_nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, kind)
    with open_checkpoint(write(tmp_path / "m.gguf", kind, shape, blocks)) as checkpoint:
        assert checkpoint.tensors["x"].shape == shape
        assert checkpoint.tensors["x"].dtype == kind.name
        assert same(checkpoint.tensor("x"), expected)
        assert isinstance(checkpoint, GgufCheckpoint)
        assert np.array_equal(checkpoint.blocks("x").numpy(), blocks)


def test_decoders_of_our_own() -> None:
    """All types that the gguf package writes, and the K and IQ4 types that models are published in."""
    published = {f"Q{bits}_K" for bits in (2, 3, 4, 5, 6)} | {"IQ4_NL", "IQ4_XS"}
    assert set(DECODERS) == {kind.name for kind in WRITTEN_BY_GGUF} | published


def test_one_expert_of_a_stack(tmp_path: Path) -> None:
    """A part is a view of the file, and expands to the numbers that the whole has there."""
    weights = np.random.default_rng(3).standard_normal((3, 5, 64)).astype(np.float32)
    path = write(tmp_path / "m.gguf", Kind.Q4_0, (3, 5, 64), gguf.quantize(weights, Kind.Q4_0))
    with open_checkpoint(path) as checkpoint:
        whole = checkpoint.quantized("x")
        assert whole is not None
        part = whole.part(2)
        assert (part.kind, part.shape, part.data.dtype) == ("Q4_0", (5, 64), torch.uint8)
        assert mapped_file(part.data) == path
        assert torch.equal(part.dequantize(), checkpoint.tensor("x")[2])


def test_bfloat16_holds_mxfp4_exactly(tmp_path: Path) -> None:
    blocks = np.random.default_rng(4).integers(0, 256, (256, 17), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)
    with open_checkpoint(write(tmp_path / "m.gguf", Kind.MXFP4, (256, 32), blocks)) as checkpoint:
        packed = checkpoint.quantized("x")
        assert packed is not None
        assert packed.lossless_dtype == torch.bfloat16
        assert torch.equal(packed.dequantize(torch.bfloat16).float(), checkpoint.tensor("x"))


@pytest.mark.parametrize("kind", WRITTEN_BY_GGUF, ids=lambda kind: kind.name)
def test_quantised_weights_come_back(tmp_path: Path, kind: Kind) -> None:
    weights = np.random.default_rng(1).standard_normal((19, 768)).astype(np.float32)
    with open_checkpoint(write(tmp_path / "m.gguf", kind, (19, 768), gguf.quantize(weights, kind))) as checkpoint:
        read = checkpoint.tensor("x").numpy()
    # Ternary types keep little more than the sign; the others are close.
    smallest = 0.6 if kind in (Kind.TQ1_0, Kind.TQ2_0) else 0.98
    assert np.corrcoef(read.ravel(), weights.ravel())[0, 1] > smallest


def test_tensor_of_many_chunks(tmp_path: Path) -> None:
    """Several chunks, the last one partly full."""
    weights = np.random.default_rng(2).standard_normal((301, 2080)).astype(np.float32)
    blocks = gguf.quantize(weights, Kind.Q8_0)
    with open_checkpoint(write(tmp_path / "m.gguf", Kind.Q8_0, (301, 2080), blocks)) as checkpoint:
        assert same(checkpoint.tensor("x"), gguf.dequantize(blocks, Kind.Q8_0))


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.IQ4_XS], ids=lambda kind: kind.name)
def test_dequantising_needs_little_beside_the_tensor_itself(tmp_path: Path, kind: Kind) -> None:
    """A few megabytes for each thread; the tensor itself is torch's memory, which is not counted here."""
    block, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.zeros((4096, 2048 // block * block_nbytes), np.uint8)
    with open_checkpoint(write(tmp_path / "m.gguf", kind, (4096, 2048), blocks)) as checkpoint:
        checkpoint.tensor("x")  # whatever NumPy allocates once
        with at_most_allocated(torch.get_num_threads() * 4 * 2**20):
            checkpoint.tensor("x")


def test_every_call_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    blocks = gguf.quantize(np.ones((2, 32), np.float32), Kind.Q8_0)
    with open_checkpoint(write(tmp_path / "m.gguf", Kind.Q8_0, (2, 32), blocks)) as checkpoint:
        checkpoint.tensor("x").zero_()
        assert checkpoint.tensor("x").min() > 0.9


@pytest.mark.parametrize("kind", sorted(UNREADABLE), ids=lambda kind: kind.name)
def test_types_that_gguf_cannot_dequantise_are_named(tmp_path: Path, kind: Kind) -> None:
    block, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    path = write(tmp_path / "m.gguf", kind, (2, block), np.zeros(2 * block_nbytes, np.uint8))
    with open_checkpoint(path) as checkpoint, pytest.raises(LoadError, match=f"'x' is {kind.name}"):
        checkpoint.tensor("x")


CODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_NL", "IQ4_XS")


@pytest.mark.parametrize("kind", sorted(Kind[name] for name in CODED), ids=lambda kind: kind.name)
def test_codes_and_scales_stand_for_the_dequantised_weight(tmp_path: Path, kind: Kind) -> None:
    """As a stack, of which a part is taken; scales that are no finite numbers are left to the test above."""
    block, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (2, 7, 512)
    blocks = np.random.default_rng(kind).integers(0, 120, (2, 7, 512 // block * block_nbytes), dtype=np.uint8)
    with open_checkpoint(write(tmp_path / "m.gguf", kind, shape, blocks)) as checkpoint:
        stored = checkpoint.quantized("x")
        assert stored is not None
        assert stored.codes() is None
        codes = stored.part(1).codes()
        assert codes is not None
        assert codes.shape == (7, 512)
        assert codes.codes.element_size() == 1
        assert same(codes.floats(), gguf.dequantize(blocks, kind)[1])
        assert same(codes.map_rows(lambda t: t.flip(0)).floats(), gguf.dequantize(blocks, kind)[1, ::-1].copy())
        assert torch.equal(kernels.pack_codes(codes).rows(torch.arange(7)), codes.floats())


@pytest.mark.parametrize("kind", sorted(Kind[name] for name in CODED), ids=lambda kind: kind.name)
def test_scales_that_are_no_numbers_are_passed_on_without_a_warning(tmp_path: Path, kind: Kind) -> None:
    block, block_nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(kind).integers(0, 256, (64, 512 // block * block_nbytes), dtype=np.uint8)
    blocks.reshape(-1, block_nbytes)[:, -2:] = blocks.reshape(-1, block_nbytes)[:, :2] = (0, 0x7C)  # infinite halves
    with open_checkpoint(write(tmp_path / "m.gguf", kind, (64, 512), blocks)) as checkpoint:
        stored = checkpoint.quantized("x")
        assert stored is not None
        codes = stored.codes()
        assert codes is not None
        assert torch.equal(codes.floats().nan_to_num(7.0), stored.dequantize().nan_to_num(7.0))


def test_kinds_that_are_no_scaled_codes_are_expanded(tmp_path: Path) -> None:
    block, block_nbytes = gguf.GGML_QUANT_SIZES[Kind.IQ2_XS]
    blocks = np.zeros((3, 512 // block * block_nbytes), np.uint8)
    with open_checkpoint(write(tmp_path / "m.gguf", Kind.IQ2_XS, (3, 512), blocks)) as checkpoint:
        stored = checkpoint.quantized("x")
        assert stored is not None
        assert stored.codes() is None

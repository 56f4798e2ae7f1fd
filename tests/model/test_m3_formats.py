"""A tiny MiniMax-M3 in every format of the releases gives the bits of the same weights stored as floats."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import MiniMaxM3SparseForConditionalGeneration

import freehold
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.weights import Source, load_weights
from support.portable_random import portable_tokens
from support.quantised_m3 import Release, copy_gguf, write_quantised_m3
from support.tiny_m3 import TinyM3Spec, quiet_transformers, write_tiny_m3_gguf

LENGTH = 100
LOGIT_TOLERANCE = 2e-4  # as in the other comparisons with transformers
# Expert matrices of 48 columns: one and a half blocks of MXFP8, three of NVFP4.
SPEC = TinyM3Spec("formats", (0, 1), (0, 1), num_experts=4, topk=2, block_tokens=32)
# Rows of 256 weights, for GGML's large blocks.
WIDE = TinyM3Spec("wide", (0, 1), (0, 1), 256, 256, 256, num_experts=4, topk=2, block_tokens=32)


def logits(path: Path, impl: str) -> torch.Tensor:
    tokens = [int(token) for token in portable_tokens(LENGTH, seed=1, name="formats")]
    with freehold.LLM(path, impl=impl) as llm:
        return llm.logits(tokens)


@pytest.fixture(scope="module", params=get_args(Release))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With "packed" and "plain" in it."""
    return write_quantised_m3(SPEC, tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_safetensors(directory: Path, impl: str) -> None:
    packed = logits(directory / "packed", impl)
    assert packed.isfinite().all()
    assert torch.equal(packed, logits(directory / "plain", impl))


def test_mxfp8_as_transformers_reads_it(tmp_path: Path) -> None:
    """Its own path for this format, over the same files; it has no blocks that are partly full."""
    pytest.importorskip("accelerate", reason="transformers needs it to read quantised weights")
    spec = replace(SPEC, expert_size=64)
    path = write_quantised_m3(spec, tmp_path, "MXFP8") / "packed"
    with quiet_transformers():
        model = MiniMaxM3SparseForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
    model.set_experts_implementation("eager")
    tokens = torch.tensor([[int(token) for token in portable_tokens(LENGTH, seed=1, name="formats")]])
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens, use_cache=False).logits[0]
    assert float((logits(path, "native") - expected).abs().max()) <= LOGIT_TOLERANCE


def test_one_weight_is_expanded_at_a_time(directory: Path) -> None:
    """What load_weights handed out is gone before the next weight is there."""
    living: list[weakref.ref[torch.Tensor]] = []

    def take(tensor: torch.Tensor) -> None:
        assert [ref for ref in living if ref() is not None] == []
        living.append(weakref.ref(tensor))

    with open_checkpoint(directory / "packed") as checkpoint:
        sources = [Source(name, info.shape, take) for name, info in checkpoint.tensors.items()]
        load_weights(checkpoint, sources)
    assert len(living) == len(sources)


@pytest.fixture(scope="module")
def float_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_tiny_m3_gguf(WIDE, path)
    return path


def llama_quantize(source: Path, target: Path, ftype: int) -> None:
    """llama.cpp's own quantiser, with its choice of a type for each tensor."""
    llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 1
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), params) == 0


# Each file holds several types: Q4_K_M has Q4_K and Q6_K, Q3_K_M has Q3_K and Q5_K.
FTYPES = {"Q3_K_M": 12, "Q4_K_M": 15, "IQ4_XS": 30, "MXFP4": 38}
MORE_FTYPES = {
    "Q4_0": 2, "Q8_0": 7, "Q5_1": 9, "Q2_K": 10, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "BF16": 32, "TQ1_0": 36,
    "TQ2_0": 37,
}  # fmt: skip


@pytest.mark.parametrize(
    "ftype",
    [pytest.param(number, id=name) for name, number in FTYPES.items()]
    + [pytest.param(number, id=name, marks=pytest.mark.slow) for name, number in MORE_FTYPES.items()],
)
def test_gguf_as_llama_cpp_quantises_it(float_gguf: Path, tmp_path: Path, ftype: int) -> None:
    llama_quantize(float_gguf, tmp_path / "q.gguf", ftype)
    copy_gguf(tmp_path / "q.gguf", tmp_path / "f.gguf")
    with open_checkpoint(tmp_path / "q.gguf") as checkpoint:
        assert len({info.dtype for info in checkpoint.tensors.values()}) > 1
    packed = logits(tmp_path / "q.gguf", "native")
    assert packed.isfinite().all()
    assert torch.equal(packed, logits(tmp_path / "f.gguf", "native"))


def test_split_gguf(float_gguf: Path, tmp_path: Path) -> None:
    """Written in parts by the gguf package, named by any of them."""
    copy_gguf(float_gguf, tmp_path / "m.gguf", split_max_tensors=10)
    parts = sorted(tmp_path.glob("m-*-of-*.gguf"))
    assert len(parts) > 2
    assert torch.equal(logits(parts[1], "native"), logits(float_gguf, "native"))

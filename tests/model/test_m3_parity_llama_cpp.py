"""MiniMax-M3's text model against llama.cpp, over one and the same GGUF file.

With flash attention, without which it would run M3 densely, llama.cpp rounds the attention's inputs to half
precision: its scores move by about 2e-3. So all experts are active (a router that is nearly tied would flip),
and positions at which a selected block won by less than 1e-3 may differ; their number is bounded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import freehold
from support import m3_oracle
from support.portable_random import portable_tokens
from support.proofs import NO_LLAMA_CPP
from support.tiny_m3 import SHAPES, TinyM3Spec, write_tiny_m3_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason=NO_LLAMA_CPP)
pytestmark = pytest.mark.rivals

TOLERANCE = 3e-3
NEAR_TIE = 1e-3
LENGTH = 700
SPECS = tuple(
    replace(SHAPES[shape], topk=topk, seed=seed, experts_per_token=SHAPES[shape].num_experts)
    for shape, topk, seed in (
        ("release_selection", 2, 24),
        ("four_index_heads", 3, 30),
        ("two_local_blocks", 5, 25),
    )
)
Case = tuple[TinyM3Spec, Path, Any]


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: spec.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The shape, its GGUF file, and the transformers model of the same weights."""
    path = tmp_path_factory.mktemp("gguf") / f"{request.param.name}.gguf"
    return request.param, path, write_tiny_m3_gguf(request.param, path)


@pytest.fixture(scope="module")
def tokens(case: Case) -> list[int]:
    spec = case[0]
    assert spec.dense_window < LENGTH
    return [int(token) for token in portable_tokens(LENGTH, seed=spec.seed, name="llama.cpp")]


@pytest.fixture(scope="module")
def reference(case: Case, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' logits, and for each position by how much its closest block was chosen."""
    with torch.no_grad(), m3_oracle.traced(case[2]) as trace:
        logits = case[2](input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits, torch.stack([layer.margins for layer in trace.layers.values()]).amin(dim=0)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_scores_agree_with_llama_cpp(
    case: Case,
    tokens: list[int],
    reference: tuple[torch.Tensor, torch.Tensor],
    impl: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rival = _llama_cpp_scores(case[1], tokens, flash_attn=True)
    with freehold.LLM(case[1], impl=impl) as llm:
        ours = llm.logits(tokens)
    difference = (ours - rival).abs().amax(dim=-1)
    clear = reference[1] >= NEAR_TIE
    same_token = float((ours.argmax(-1) == rival.argmax(-1)).float().mean())
    with capsys.disabled():
        print(
            f"\n{case[0].name}, {impl}: largest difference {float(difference[clear].max()):.1e} "
            f"at the {int(clear.sum())} positions of {len(tokens)} without a near tie, "
            f"{float(difference.max()):.1e} at all; same token {same_token:.2%}"
        )
    assert float(difference[clear].max()) <= TOLERANCE
    assert float((~clear).float().mean()) < 0.06
    assert same_token >= 0.995


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_gguf_holds_the_same_model_as_transformers(
    case: Case, tokens: list[int], reference: tuple[torch.Tensor, torch.Tensor], impl: str
) -> None:
    """No rounding to half precision here, so the bound is that of the safetensors checkpoints."""
    with freehold.LLM(case[1], impl=impl) as llm:
        assert float((llm.logits(tokens) - reference[0]).abs().max()) <= 2e-4


def test_llama_cpp_runs_the_sparse_model(case: Case, tokens: list[int]) -> None:
    """Its silent dense fallback is far away beyond the dense window; otherwise the comparison would prove little."""
    sparse = _llama_cpp_scores(case[1], tokens, flash_attn=True)
    dense = _llama_cpp_scores(case[1], tokens, flash_attn=False)
    difference = (sparse - dense).abs().amax(dim=-1)
    assert float(difference[: case[0].dense_window].max()) <= TOLERANCE
    assert float(difference[case[0].dense_window :].max()) > 30 * TOLERANCE


def _llama_cpp_scores(path: Path, tokens: list[int], *, flash_attn: bool) -> torch.Tensor:
    """llama.cpp's scores, fp32 (len, vocab), with keys and values kept in fp32."""
    llm = llama_cpp.Llama(
        model_path=str(path),
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=1024,
        logits_all=True,
        flash_attn=flash_attn,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_threads=2,
        verbose=False,
    )
    try:
        llm.eval(tokens)
        return torch.from_numpy(np.array(llm.scores[: len(tokens)], dtype=np.float32))
    finally:
        llm.close()

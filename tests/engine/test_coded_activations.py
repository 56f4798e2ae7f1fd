"""`activations="int8"`: other numbers than in float32, and the same bits in any chunks, company and place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import freehold
from freehold import kernels
from freehold.core.config import EngineConfig
from freehold.core.errors import ConfigError
from freehold.engine.memory import _identity
from freehold.loading.checkpoint import open_checkpoint
from freehold.quantize.job import quantize
from support.portable_random import portable_tokens
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import TinyM3Spec, write_tiny_m3

SPEC = TinyM3Spec("coded", (0, 1, 1), (0, 1, 1), num_experts=6, topk=2, block_tokens=32, expert_size=64)
TOKENS = [int(token) for token in portable_tokens(150, seed=1, name="coded")]


@pytest.fixture(scope="module", params=["m3", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 4 and 8 bits."""
    folder = tmp_path_factory.mktemp("coded")
    if request.param == "m3":
        write_tiny_m3(SPEC, folder / "floats")
    else:
        write_tiny_llama(LLAMAS["mlp_bias"], folder / "floats")
    with open_checkpoint(folder / "floats") as checkpoint:
        return quantize(checkpoint, folder / "int4", 4).path


def test_the_same_bits_in_any_chunks_and_with_any_threads(model: Path) -> None:
    with freehold.LLM(model, activations="int8") as llm:
        expected, before = llm.logits(TOKENS), kernels.threads()
    with freehold.LLM(model) as llm:
        exact = llm.logits(TOKENS)
    # Codes of 8 bits are right to 0.4 % of the largest; a row whose experts or blocks become others differs more.
    errors = (expected - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0 < errors.median() < 0.05
    try:
        for chunk, threads in ((1, 1), (7, 2), (64, 3)):
            kernels.set_threads(threads)
            with freehold.LLM(model, activations="int8", prefill_chunk=chunk) as llm:
                assert torch.equal(llm.logits(TOKENS), expected)
    finally:
        kernels.set_threads(before)


def test_experts_from_the_disk_have_the_same_bits(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "experts" not in (model / "config.json").read_text():
        pytest.skip("this model has no experts")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    with freehold.LLM(model, activations="int8") as llm:
        expected = llm.logits(TOKENS)
    for _ in range(2):  # written, and found
        with freehold.LLM(model, activations="int8", expert_budget=100_000) as llm:
            assert torch.equal(llm.logits(TOKENS), expected)
    with freehold.LLM(model, expert_budget=100_000) as llm:  # the file serves both
        assert not torch.equal(llm.logits(TOKENS), expected)


def test_blocks_of_one_are_not_those_of_the_other() -> None:
    first, second = (_identity(EngineConfig(activations=a), 128, "w") for a in ("float32", "int8"))
    assert first.digest != second.digest


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="activations is 'int4'"):
        EngineConfig(activations="int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rounds no activations"):
        EngineConfig(activations="int8", impl="reference")

"""The Llama family against transformers: every rotary variant, tied and untied, with and without biases."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import freehold
from support.portable_random import portable_tokens
from support.tiny_llama import LLAMAS, build_tiny_llama, write_tiny_llama

TOLERANCE = 1e-4
LENGTH = 700  # beyond the 256 positions that the stretched rotary variants call original
IMPLS = ("reference", "native")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    @cache
    def write(name: str, older_form: bool = False) -> Path:
        place = tmp_path_factory.mktemp(name)
        write_tiny_llama(LLAMAS[name], place, older_form=older_form)
        return place

    return write


@cache
def _model(name: str) -> Any:
    return build_tiny_llama(LLAMAS[name])


def _tokens(name: str, length: int = LENGTH) -> list[int]:
    return [int(token) for token in portable_tokens(length, seed=LLAMAS[name].seed, name="llama")]


@cache
def _logits(name: str) -> torch.Tensor:
    with torch.no_grad():
        out = _model(name)(input_ids=torch.tensor([_tokens(name)]), use_cache=False)
    logits: torch.Tensor = out.logits[0]
    return logits


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", LLAMAS)
def test_logits_agree(directory: Callable[..., Path], name: str, impl: str) -> None:
    with freehold.LLM(directory(name), impl=impl) as llm:
        logits = llm.logits(_tokens(name))
    assert logits.shape == _logits(name).shape
    assert float((logits - _logits(name)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", ["plain", "linear", "llama3", "yarn_tuned"])
def test_the_older_form_of_the_rotary_keys_names_the_same_model(directory: Callable[..., Path], name: str) -> None:
    config = json.loads((directory(name, older_form=True) / "config.json").read_text())
    assert "rope_parameters" not in config
    with freehold.LLM(directory(name, older_form=True), impl="native") as llm:
        assert float((llm.logits(_tokens(name)) - _logits(name)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["plain", "mlp_bias", "llama3"])
def test_greedy_continuations_are_identical(directory: Callable[..., Path], name: str, impl: str) -> None:
    prompt = _tokens(name, 129)
    with torch.no_grad():
        out = _model(name).generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = torch.stack(out.logits)[:, 0].topk(2, dim=-1).values
    assert float((best[:, 0] - best[:, 1]).min()) > 10 * TOLERANCE, "two tokens are close: take another seed"
    with freehold.LLM(directory(name), impl=impl) as llm:
        answer = llm.generate(prompt, max_tokens=64, temperature=0.0, ignore_eos=True)
    assert list(answer.token_ids) == out.sequences[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn", "yarn_tuned", "yarn_mscale"])
def test_rotary_variants_matter(name: str) -> None:
    """Each variant's logits are far from those of plain rotary embedding, so that ignoring it cannot pass."""
    model = build_tiny_llama(LLAMAS[name])
    rotary = model.model.rotary_emb
    inv_freq, _ = rotary.compute_default_rope_parameters(model.config)
    rotary.inv_freq = inv_freq
    rotary.attention_scaling = 1.0
    with torch.no_grad():
        plain = model(input_ids=torch.tensor([_tokens(name)]), use_cache=False).logits[0]
    assert float((plain - _logits(name)).abs().max()) > 100 * TOLERANCE

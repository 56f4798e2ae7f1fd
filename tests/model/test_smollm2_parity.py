"""The default model, a quantised GGUF, against transformers reading the same file into fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_m3 import quiet_transformers

import freehold

pytestmark = pytest.mark.model

LOGIT_TOLERANCE = 2e-3
CONTINUATION = 64
IMPLS = ("reference", "native")
TEXTS = {
    "prose": "The water of the lake lay still in the morning, and on the far shore",
    "code": "def fibonacci(n: int) -> int:\n    ",
    "list": "The planets of the solar system, from the sun outwards, are",
}


@pytest.fixture(scope="module")
def transformers_model(default_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            default_model.parent, gguf_file=default_model.name, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


@pytest.fixture(scope="module", params=IMPLS)
def llm(request: pytest.FixtureRequest, default_model: Path) -> Iterator[freehold.LLM]:
    with freehold.LLM(default_model, impl=request.param, kv_dtype="float32") as loaded:
        yield loaded


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_continuations_are_identical(llm: freehold.LLM, transformers_model: Any, text: str) -> None:
    prompt = llm.encode(TEXTS[text])
    with torch.no_grad():
        out = transformers_model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=CONTINUATION,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    answer = llm.generate(prompt, max_tokens=CONTINUATION, temperature=0.0, ignore_eos=True)
    assert list(answer.token_ids) == out[0, len(prompt) :].tolist()
    assert len(answer.token_ids) == CONTINUATION


def test_logits_agree(llm: freehold.LLM, transformers_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = [token for text in TEXTS.values() for token in llm.encode(text + "\n\n")] * 4
    with torch.no_grad():
        wanted = transformers_model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    difference = float((llm.logits(prompt) - wanted).abs().max())
    with capsys.disabled():
        print(f"\nSmolLM2, {llm.description}: logits of {len(prompt)} tokens differ by at most {difference:.1e}")
    assert difference <= LOGIT_TOLERANCE

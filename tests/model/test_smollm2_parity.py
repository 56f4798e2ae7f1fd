"""The default model, a quantised GGUF, against transformers reading the same file into fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import freehold
from support.tiny_m3 import quiet_transformers

pytestmark = pytest.mark.model

LOGIT_TOLERANCE = 2e-3
TEXTS = {
    "prose": "The water of the lake lay still in the morning, and on the far shore",
    "code": "def fibonacci(n: int) -> int:\n    ",
    "list": "The planets of the solar system, from the sun outwards, are",
}


# The oracle is slow: how many tokens in every run, and in the long one.
CASES = [("native", "prose", 64), ("native", "code", 16), ("native", "list", 16), ("reference", "prose", 8)]
LONG_CASES = [("native", "code", 64), ("native", "list", 64), ("reference", "prose", 64)]


@pytest.fixture(scope="module")
def transformers_model(default_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            default_model.parent,
            gguf_file=default_model.name,
            dtype=torch.float32,
            attn_implementation="eager",
        )
    return model.eval()


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[Callable[[str], freehold.LLM]]:
    """The engine over the default model for an implementation, loaded on first use."""
    loaded: dict[str, freehold.LLM] = {}

    def load(impl: str) -> freehold.LLM:
        if impl not in loaded:
            loaded[impl] = freehold.LLM(default_model, impl=impl, kv_dtype="float32")
        return loaded[impl]

    yield load
    for llm in loaded.values():
        llm.close()


@pytest.mark.parametrize(
    ("impl", "text", "tokens"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG_CASES)]
)
def test_greedy_continuations_are_identical(
    engine: Callable[[str], freehold.LLM], transformers_model: Any, impl: str, text: str, tokens: int
) -> None:
    prompt = engine(impl).encode(TEXTS[text])
    with torch.no_grad():
        out = transformers_model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    answer = engine(impl).generate(prompt, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    assert list(answer.token_ids) == out[0, len(prompt) :].tolist()
    assert len(answer.token_ids) == tokens


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_logits_agree(
    engine: Callable[[str], freehold.LLM],
    transformers_model: Any,
    impl: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    llm = engine(impl)
    prompt = [token for text in TEXTS.values() for token in llm.encode(text + "\n\n")] * 4
    with torch.no_grad():
        wanted = transformers_model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    difference = float((llm.logits(prompt) - wanted).abs().max())
    with capsys.disabled():
        print(f"\nSmolLM2, {llm.description}: logits of {len(prompt)} tokens differ by at most {difference:.1e}")
    assert difference <= LOGIT_TOLERANCE

"""What a model's files say about sampling counts where a request says nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import freehold
from freehold.core.errors import ConfigError
from freehold.loading.default_model import FILE_NAME
from freehold.model.sampling_defaults import sampling_defaults


def directory(**generation_config: Any) -> Any:
    return SimpleNamespace(path=Path("m"), format="safetensors", config={}, generation_config=generation_config)


def gguf(name: str = "m.gguf", **sampling: Any) -> Any:
    config = {f"general.sampling.{key}": value for key, value in sampling.items()}
    return SimpleNamespace(path=Path(name), format="gguf", config=config, generation_config={})


@pytest.mark.parametrize(
    ("checkpoint", "wanted"),
    [
        (directory(), {}),
        (directory(eos_token_id=2, max_length=20), {}),
        (directory(do_sample=True, temperature=0.6, top_p=0.9), {"temperature": 0.6, "top_p": 0.9}),
        (directory(temperature=None, top_k=40, min_p=0.1), {"top_k": 40, "min_p": 0.1}),
        (directory(top_k=0, repetition_penalty=1.1), {"repetition_penalty": 1.1}),
        (directory(do_sample=False, top_p=0.9), {"temperature": 0.0}),
        (gguf(), {}),
        (gguf(temp=0.7, top_k=20, top_p=0.8, penalty_repeat=1.05),
         {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}),
        (gguf(FILE_NAME), {"temperature": 0.2, "top_p": 0.9}),
        (gguf(FILE_NAME, temp=0.7), {"temperature": 0.7}),
    ],
)  # fmt: skip
def test_the_files_say_how_a_model_is_sampled(checkpoint: Any, wanted: dict[str, Any]) -> None:
    assert sampling_defaults(checkpoint) == wanted


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": "high"}, {"top_k": 2.5}])
def test_values_that_cannot_be_meant_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"m: how it says .* {next(iter(wrong))} is "):
        sampling_defaults(directory(**wrong))


@pytest.mark.model
def test_an_answer_from_python_is_sampled_as_the_files_say(default_model: Path) -> None:
    with freehold.LLM(default_model) as llm:
        assert llm.sampling_defaults == {"temperature": 0.2, "top_p": 0.9}
        asked: dict[str, Any] = {"max_tokens": 8, "seed": 3}
        by_default = llm.generate("The sun", **asked).token_ids
        assert by_default == llm.generate("The sun", temperature=0.2, top_p=0.9, **asked).token_ids

"""How a model is best sampled, as its files say: what counts where a request says nothing."""

from __future__ import annotations

from typing import Any

from freehold.core.errors import ConfigError, RequestError
from freehold.core.sampling import SamplingParams
from freehold.loading.checkpoint import Checkpoint
from freehold.loading.default_model import FILE_NAME

IN_GENERATION_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_IN_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_SMOLLM2 = {"temperature": 0.2, "top_p": 0.9}
"""What the makers of SmolLM2 recommend for it. The default model's file does not say it; at temperature 1 a model of
135 million parameters talks nonsense."""


def sampling_defaults(checkpoint: Checkpoint) -> dict[str, float | int]:
    """Fields of `SamplingParams`: from generation_config.json, or from a GGUF file's `general.sampling` keys.

    `do_sample: false` means greedy. Fields that are null, and a top_k of 0 or -1, which there means none, are left out.
    Raises ConfigError for values that cannot be meant.
    """
    config = checkpoint.config if checkpoint.format == "gguf" else checkpoint.generation_config
    if checkpoint.format == "gguf":
        named = {name: config.get(key) for key, name in _IN_GGUF.items()}
    else:
        named = {name: config.get(name) for name in IN_GENERATION_CONFIG}
    found: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if found.get("top_k") in (0, -1):
        del found["top_k"]
    if checkpoint.format != "gguf" and config.get("do_sample") is False:
        found = {"temperature": 0.0}
    if not found and checkpoint.path.name == FILE_NAME:
        found = dict(_SMOLLM2)
    try:
        SamplingParams(**found)
    except RequestError as error:
        raise ConfigError(f"{checkpoint.path}: how it says that it is to be sampled is not usable: {error}") from error
    return found

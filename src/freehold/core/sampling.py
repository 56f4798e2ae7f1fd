"""How a continuation is chosen: the values of a request's sampling fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.core.errors import RequestError
from freehold.core.typed import is_kind, kind_name


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling fields of one request. None always means "not asked for".

    max_tokens: most tokens to generate; None: up to the context's end.
    temperature: 0 is greedy (ties to the lower token id).
    top_k: keep the k likeliest tokens. top_p: keep the smallest set whose probability reaches p.
    min_p: drop tokens less likely than min_p times the likeliest one.
    presence_penalty, frequency_penalty: subtracted from the logits of generated tokens (OpenAI's definition).
    repetition_penalty: divides positive, multiplies negative logits of tokens in the prompt or the
        answer (CTRL, arXiv 1909.05858).
    seed: same seed, prompt and fields give the same answer, whatever else the engine is doing.
    stop: texts that end the answer; not part of it. stop_token_ids: the same for tokens.
    logit_bias: token id -> added to its logit.
    ignore_eos: go on after end-of-sequence tokens (for measurements).
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            optional = name in ("max_tokens", "top_k", "seed") and value is None
            _check(name, value, optional or is_kind(value, kind), kind_name(kind))
        _check("stop", self.stop, _all_of(self.stop, str), "a list of texts")
        _check("stop_token_ids", self.stop_token_ids, _all_of(self.stop_token_ids, int), "a list of token ids")
        biases = self.logit_bias
        mapped = isinstance(biases, Mapping) and _all_of(tuple(biases), int) and _all_of(tuple(biases.values()), float)
        _check("logit_bias", biases, mapped, "a mapping from token ids to numbers")
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "between 0 and 100")
        _check("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or left out")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, -2.0 <= value <= 2.0, "between -2 and 2")
        _check(
            "repetition_penalty", self.repetition_penalty, 0.0 < self.repetition_penalty <= 10.0, "above 0, at most 10"
        )
        _check("seed", self.seed, self.seed is None or -(2**63) <= self.seed < 2**63, "a 64-bit integer")
        _check("stop", self.stop, all(self.stop), "texts of at least one character")
        for token, bias in self.logit_bias.items():
            _check(f"logit_bias[{token}]", bias, math.isfinite(bias) and -100 <= bias <= 100, "between -100 and 100")


_KINDS: dict[str, type] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
    "ignore_eos": bool,
}


def _all_of(values: object, kind: type) -> bool:
    return isinstance(values, (tuple, list)) and all(is_kind(value, kind) for value in values)


def _check(name: str, value: object, ok: bool, wanted: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {value!r}; it must be {wanted}", field=name)

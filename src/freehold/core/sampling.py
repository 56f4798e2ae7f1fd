"""How a continuation is chosen: the values of a request's sampling fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.core.errors import RequestError
from freehold.core.logprobs import MOST_ALTERNATIVES
from freehold.core.typed import is_kind, kind_name


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling fields of one request. None always means "not asked for".

    max_tokens: most tokens to generate; None: up to the context's end. 0 is for prompt_logprobs alone: the prompt is
        computed and nothing is sampled.
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
    grammar: what the whole answer must be, in llguidance's dialect of Lark. Tokens that cannot go on with it are left
        out before anything is chosen; an end-of-sequence token is possible only where the grammar may end; and when
        nothing more can follow, the answer ends as if the model had stopped.
    logprobs: say how likely each sampled token was, and so many of the likeliest tokens there; see `TokenLogprobs`.
    prompt_logprobs: the same for each token of the prompt but the first. The whole prompt is then computed anew.
    skip_special_tokens: leave special tokens out of the text. Reading reasoning or tool calls needs them; the token
        that ends an answer is never part of it.
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
    grammar: str | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            optional = name in _OPTIONAL and value is None
            _check(name, value, optional or is_kind(value, kind), kind_name(kind))
        _check("stop", self.stop, _all_of(self.stop, str), "a list of texts")
        _check("stop_token_ids", self.stop_token_ids, _all_of(self.stop_token_ids, int), "a list of token ids")
        biases = self.logit_bias
        mapped = isinstance(biases, Mapping) and _all_of(tuple(biases), int) and _all_of(tuple(biases.values()), float)
        _check("logit_bias", biases, mapped, "a mapping from token ids to numbers")
        self._check_answer()
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

    def _check_answer(self) -> None:
        """What is to come back, and how much of it."""
        scored = self.prompt_logprobs is not None
        enough = self.max_tokens is None or self.max_tokens >= (0 if scored else 1)
        _check("max_tokens", self.max_tokens, enough, "at least 1, or 0 together with prompt_logprobs")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 <= value <= MOST_ALTERNATIVES, f"between 0 and {MOST_ALTERNATIVES}")
        _check("grammar", self.grammar, self.grammar is None or bool(self.grammar.strip()), "a grammar, not empty")
        if self.grammar is not None and self.ignore_eos:
            raise RequestError(
                "ignore_eos is True beside a grammar, which decides where the answer ends; leave one of them out",
                field="ignore_eos",
            )


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
    "grammar": str,
    "logprobs": int,
    "prompt_logprobs": int,
    "skip_special_tokens": bool,
}
_OPTIONAL = frozenset({"max_tokens", "top_k", "seed", "grammar", "logprobs", "prompt_logprobs"})


def _all_of(values: object, kind: type) -> bool:
    return isinstance(values, (tuple, list)) and all(is_kind(value, kind) for value in values)


def _check(name: str, value: object, ok: bool, wanted: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {value!r}; it must be {wanted}", field=name)

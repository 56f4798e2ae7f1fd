"""What the engine says while it works: one value for each thing that happens to a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from freehold.core.logprobs import TokenLogprobs
from freehold.core.provenance import Provenance

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]

MISS_TOKENS = 8
"""How much of both texts a `Miss` shows."""


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a prompt was not found further in the cache: from `position`, in block number `block`, it goes on with the
    tokens `got`, where the kept text closest to it has `expected`; both at most `MISS_TOKENS`, their first ones differ.

    expected_text, got_text: the same as text, "[picture]" for each token that stands for one.
    For the operator: what is expected may come from another client's prompt.
    """

    position: int
    block: int
    expected: tuple[int, ...]
    got: tuple[int, ...]
    expected_text: str = ""
    got_text: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and times of one request.

    cached_tokens: prompt tokens whose blocks were found, so that nothing was computed for them.
    prefill_seconds: from the first prefill step to the first sampled token.
    decode_seconds: from the first sampled token to the last.
    queued_seconds: from submission to the first prefill step.
    miss: where the prompt left what was cached when it started; None if it was found to its end, or was new there.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    miss: Miss | None = None


@dataclass(frozen=True, slots=True)
class PrefillEvent:
    """A chunk of a prompt was computed: `done` of `total` prompt tokens are in the cache."""

    request_id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    """How likely the next tokens of the prompt were: logprobs[i] is of the prompt's token number start + i.

    Comes chunk by chunk, in order, before the first token; the first one has start 1, because nothing predicts the
    prompt's first token. Each position comes once, also if some were computed again.
    """

    request_id: str
    start: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token was sampled. `text` is what became certain with it; it may be empty while a character
    or a possible stop text is incomplete. `logprobs` is there if it was asked for."""

    request_id: str
    token_id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The request ended; nothing follows. `text` is what had been held back and belongs to the answer.
    `provenance` is there if it was asked for. `stop_text` is the stop text that ended the answer, if one did.
    `refusal`: of an error that is the request's own fault, what its sender is to know."""

    request_id: str
    reason: FinishReason
    usage: Usage
    text: str = ""
    error: str | None = None
    provenance: Provenance | None = None
    stop_text: str | None = None
    refusal: str | None = None


Event = PrefillEvent | PromptLogprobsEvent | TokenEvent | FinishEvent

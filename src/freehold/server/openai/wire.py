"""OpenAI's wire types that several routes share, and those of completions.

A request is refused when it uses a field that is not implemented; a field that is not implemented but
holds the value that means "off" is accepted, because clients send such values unasked. null: "not given".

Three fields are labels, accepted and without effect on the answer: `user` and `safety_identifier`, which name the
client among which the engine's time is shared fairly, and `prompt_cache_key` (prefixes are shared by content, so no
key is needed). Extensions to OpenAI's fields: top_k, min_p, repetition_penalty, ignore_eos, stop_token_ids and priority
(lower is served sooner, 0 where it is not given).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, model_validator

from freehold.core.logprobs import MOST_ALTERNATIVES
from freehold.core.sampling import SamplingParams
from freehold.server.answer import FinishText
from freehold.server.wire import WireModel, refusal, shown

MAX_N = 16
MAX_CHOICES = 128
MAX_STOP_TEXTS = 16
MAX_STOP_TOKEN_IDS = 64
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default `max_tokens` of /v1/completions; chats go on to the end of the context."""

INT32_MAX = 2**31 - 1
NO_DEFAULTS: Mapping[str, Any] = {}
"""Of sampling fields that a request leaves out: the engine's own count."""


# --- what requests share ------------------------------------------------------------------------------------


def _stop_texts(value: Any) -> Any:
    return _not_longer([value] if isinstance(value, str) else value, MAX_STOP_TEXTS)


def _stop_token_ids(value: Any) -> Any:
    return _not_longer(value, MAX_STOP_TOKEN_IDS)


def _not_longer(value: Any, limit: int) -> Any:
    # Before the items are looked at: each wrong one would be described.
    if isinstance(value, list) and len(value) > limit:
        raise refusal("value", f"it has {len(value)} items; at most {limit} are supported")
    return value


def _logit_bias(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise refusal("value", "it must be an object of token ids and numbers")
    biases = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= INT32_MAX):
            raise refusal("value", f"{shown(token)} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise refusal("value", f"the bias of token {token} must be a number between -100 and 100", token)
        biases[int(token)] = float(bias)
    return biases


class StreamOptions(WireModel):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (None, False)}

    include_usage: bool | None = None


class SamplingNumbers(WireModel):
    """The fields of sampling that have one name in chats, completions and responses. The engine checks their ranges."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, le=INT32_MAX)
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    priority: int | None = Field(None, ge=-(2**31), le=INT32_MAX)

    def numbers(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `SamplingParams`, all but the seed. defaults: where the request says nothing."""
        given = {name: value for name in _NUMBERS if (value := getattr(self, name)) is not None}
        return {**defaults, **given}


_NUMBERS = tuple(
    name for name in SamplingParams.__dataclass_fields__ if name in SamplingNumbers.model_fields and name != "seed"
)


class SamplingFields(SamplingNumbers):
    """The fields that chats and completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    stop: Annotated[list[str] | None, BeforeValidator(_stop_texts, json_schema_input_type=str | list[str] | None)] = (
        None
    )
    stop_token_ids: Annotated[list[int] | None, BeforeValidator(_stop_token_ids)] = None
    logit_bias: Annotated[
        dict[int, float] | None, PlainValidator(_logit_bias, json_schema_input_type=dict[str, float] | None)
    ] = None
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise refusal("value", "'stream_options' needs 'stream': true", "stream_options")
        return self

    @property
    def num_choices(self) -> int:
        """Answers asked for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, choice: int = 0, defaults: Mapping[str, Any] = NO_DEFAULTS) -> SamplingParams:
        """The engine's values for the answer number `choice` to a prompt. defaults: where the request says nothing.
        Raises RequestError."""
        return SamplingParams(
            **self.numbers(defaults),
            max_tokens=self.max_tokens,
            logit_bias=self.logit_bias or {},
            ignore_eos=bool(self.ignore_eos),
            seed=derived_seed(self.seed, choice),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            **self.logprob_fields(),
        )

    def logprob_fields(self) -> dict[str, Any]:
        """The engine's `logprobs` and, for completions, `prompt_logprobs`; the two APIs ask for them differently."""
        return {}


def derived_seed(seed: int | None, choice: int) -> int | None:
    """The seed of answer number `choice`: None stays None, answer 0 has the seed itself.

    Later answers get a hash, not seed + choice: else answer 1 of seed 1 would be answer 0 of seed 2.
    """
    if seed is None or choice == 0:
        return seed
    digest = blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# --- completions --------------------------------------------------------------------------------------------


def _prompts(value: Any) -> list[str | list[int]]:
    """One or several prompts, each a text or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise refusal("value", "it must be a string, a list of strings, of token ids or of lists of token ids")
    if all(isinstance(item, str) for item in value):
        prompts: list[str | list[int]] = value
    elif all(isinstance(item, list) for item in value):
        prompts = value
    else:
        prompts = [value]
    if len(prompts) > MAX_CHOICES:
        raise refusal("value", f"{len(prompts)} prompts given; at most {MAX_CHOICES} are supported")
    for prompt in prompts:
        if isinstance(prompt, str):
            continue
        if not prompt:
            raise refusal("value", "a prompt has no tokens")
        if not all(type(token) is int and 0 <= token <= INT32_MAX for token in prompt):
            raise refusal("value", "a list that is a prompt must hold token ids: integers from 0 up")
    return prompts


class PlainPrompt(Protocol):
    """How the texts of a request become tokens."""

    add_special_tokens: bool | None
    parse_special: bool | None


class CompletionRequest(SamplingFields):
    """POST /v1/completions.

    A prompt that is a text is what the model reads, so that special tokens which it spells are those tokens, as
    elsewhere: clients write chat templates themselves. Extensions: `parse_special` false, for texts of others: they
    stay text; `add_special_tokens` false: no BOS token comes first, though the model's files ask for one.
    """

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"best_of": (None, 1), "suffix": (None, "")}

    max_tokens: int | None = Field(None, ge=0, le=INT32_MAX)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    prompt: Annotated[
        list[str | list[int]],
        PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]

    @model_validator(mode="after")
    def _limits(self) -> CompletionRequest:
        if len(self.prompt) * self.num_choices > MAX_CHOICES:
            detail = f"{len(self.prompt)} prompts times n={self.num_choices}: more than {MAX_CHOICES} answers"
            raise refusal("value", detail, "prompt")
        if self.max_tokens is None:
            self.max_tokens = DEFAULT_COMPLETION_TOKENS
        if self.max_tokens == 0 and not (self.echo and self.logprobs is not None):
            raise refusal("value", "0 is for 'echo' with 'logprobs': the prompt alone is scored", "max_tokens")
        return self

    def logprob_fields(self) -> dict[str, Any]:
        """See SamplingFields. An echoed prompt is scored as well."""
        return {"logprobs": self.logprobs, "prompt_logprobs": self.logprobs if self.echo else None}


# --- answers ------------------------------------------------------------------------------------------------


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class UsageBody(BaseModel):
    """Token counts. A prompt counts once, however many answers it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TextLogprobs(BaseModel):
    """Of each token of `text`, in the old form: the first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishText | None


class TextCompletion(BaseModel):
    """An answer of /v1/completions; also each chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["freehold"] = "freehold"
    context_length: int
    input_modalities: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every refusal and failure, on every path, has this form."""

    error: ErrorDetail

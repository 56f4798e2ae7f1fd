"""OpenAI's wire types, as far as Freehold implements them.

A request is refused when it uses a field that is not implemented; a field that is not implemented but
holds the value that means "off" is accepted, because clients send such values unasked. null: "not given".

Three fields are labels, accepted and without effect on the answer: `user` and `safety_identifier`, which name the
client among which the engine's time is shared fairly, and `prompt_cache_key` (prefixes are shared by content, so no
key is needed). Extensions to OpenAI's fields: top_k, min_p, repetition_penalty, ignore_eos, stop_token_ids, priority
(lower is served sooner, 0 where it is not given) and, for chats, chat_template_kwargs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.core.sampling import SamplingParams

MAX_N = 16
MAX_CHOICES = 128
MAX_STOP_TEXTS = 16
MAX_STOP_TOKEN_IDS = 64
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default `max_tokens` of /v1/completions; chats go on to the end of the context."""

_INT32_MAX = 2**31 - 1


# --- refusals -----------------------------------------------------------------------------------------------


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refusal(kind: Literal["unknown", "unsupported", "value"], detail: str, field: str = "") -> PydanticCustomError:
    """An error that parse_request turns into a RequestError; `field` is relative to the validated value."""
    context = {"detail": detail, "field": field}
    if kind == "unknown":
        return PydanticCustomError("unknown_parameter", "{detail}", context)
    if kind == "unsupported":
        return PydanticCustomError("unsupported_parameter", "{detail}", context)
    return PydanticCustomError("invalid_value", "{detail}", context)


class WireModel(BaseModel):
    """A JSON object whose every field is known. OFF: fields not implemented -> values that mean "off"."""

    model_config = ConfigDict(extra="forbid", strict=True)
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_implemented(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {}
        for name, given in value.items():
            if name in cls.model_fields:
                known[name] = given
            elif name not in cls.OFF:
                near = difflib.get_close_matches(name[:80], [*cls.model_fields, *cls.OFF], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise _refusal("unknown", f"unknown field {_shown(name)}{hint}", name[:80])
            elif not any(type(given) is type(off) and given == off for off in cls.OFF[name]):
                raise _refusal("unsupported", f"{name!r} is not supported; leave it out", name)
        return known


# --- what requests share ------------------------------------------------------------------------------------


def _stop_texts(value: Any) -> Any:
    return _not_longer([value] if isinstance(value, str) else value, MAX_STOP_TEXTS)


def _stop_token_ids(value: Any) -> Any:
    return _not_longer(value, MAX_STOP_TOKEN_IDS)


def _not_longer(value: Any, limit: int) -> Any:
    # Before the items are looked at: each wrong one would be described.
    if isinstance(value, list) and len(value) > limit:
        raise _refusal("value", f"it has {len(value)} items; at most {limit} are supported")
    return value


def _logit_bias(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _refusal("value", "it must be an object of token ids and numbers")
    biases = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= _INT32_MAX):
            raise _refusal("value", f"{_shown(token)} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise _refusal("value", f"the bias of token {token} must be a number between -100 and 100", token)
        biases[int(token)] = float(bias)
    return biases


class StreamOptions(WireModel):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (None, False)}

    include_usage: bool | None = None


class SamplingFields(WireModel):
    """The fields that chats and completions share."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=_INT32_MAX)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, le=_INT32_MAX)
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
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
    priority: int | None = Field(None, ge=-(2**31), le=_INT32_MAX)

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise _refusal("value", "'stream_options' needs 'stream': true", "stream_options")
        return self

    @property
    def num_choices(self) -> int:
        """Answers asked for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, choice: int = 0) -> SamplingParams:
        """The engine's values for the answer number `choice` to a prompt. Raises RequestError."""
        given = {
            name: value
            for name in _SAMPLING_NAMES
            if (value := getattr(self, name)) is not None and name not in ("seed", "stop", "stop_token_ids")
        }
        return SamplingParams(
            **given,
            seed=derived_seed(self.seed, choice),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
        )


_SAMPLING_NAMES = tuple(name for name in SamplingParams.__dataclass_fields__ if name in SamplingFields.model_fields)


def derived_seed(seed: int | None, choice: int) -> int | None:
    """The seed of answer number `choice`: None stays None, answer 0 has the seed itself.

    Later answers get a hash, not seed + choice: else answer 1 of seed 1 would be answer 0 of seed 2.
    """
    if seed is None or choice == 0:
        return seed
    digest = blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# --- chats --------------------------------------------------------------------------------------------------


def _joined_text(value: Any) -> Any:
    """A string, or the texts of a list of text parts put together without anything between them."""
    if not isinstance(value, list):
        return value
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise _refusal("value", f"content part {index} is not an object", f"[{index}]")
        if part.get("type") != "text":
            detail = f"content parts of type {_shown(part.get('type'))} are not supported; only 'text' is"
            raise _refusal("unsupported", detail, f"[{index}].type")
        if not isinstance(part.get("text"), str):
            raise _refusal("value", f"content part {index} has no string 'text'", f"[{index}].text")
        for name in part:
            if name not in ("type", "text"):
                raise _refusal("unknown", f"unknown field {_shown(name)}", f"[{index}].{name[:80]}")
        texts.append(part["text"])
    return "".join(texts)


class ChatMessage(WireModel):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": (None, []),
        "audio": (None,),
        "function_call": (None,),
        "reasoning_content": (None,),
        "refusal": (None,),
        "tool_call_id": (None,),
        "tool_calls": (None, []),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_text, json_schema_input_type=str | list[dict[str, str]])]
    name: str | None = None


def _template_kwargs(value: Any) -> Any:
    if isinstance(value, dict):
        for name in value:
            if not name.isidentifier() or name in ("self", "messages", "tools"):
                raise _refusal("value", f"{_shown(name)} cannot be passed to a chat template", name[:80])
    return value


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (None,),
        "function_call": (None, "none", "auto"),
        "functions": (None, []),
        "logprobs": (None, False),
        "metadata": (None, {}),
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "parallel_tool_calls": (None, True, False),
        "prediction": (None,),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "reasoning_effort": (None,),
        "response_format": (None, {"type": "text"}),
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
        "tool_choice": (None, "none", "auto"),
        "tools": (None, []),
        "top_logprobs": (None, 0),
        "verbosity": (None,),
        "web_search_options": (None,),
    }

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, le=_INT32_MAX)
    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(_template_kwargs)] = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if self.max_completion_tokens is None:
            return self
        if self.max_tokens not in (None, self.max_completion_tokens):
            detail = f"{self.max_completion_tokens} contradicts 'max_tokens', {self.max_tokens}; give one"
            raise _refusal("value", detail, "max_completion_tokens")
        self.max_tokens = self.max_completion_tokens
        return self


# --- completions --------------------------------------------------------------------------------------------


def _prompts(value: Any) -> list[str | list[int]]:
    """One or several prompts, each a text or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise _refusal("value", "it must be a string, a list of strings, of token ids or of lists of token ids")
    if all(isinstance(item, str) for item in value):
        prompts: list[str | list[int]] = value
    elif all(isinstance(item, list) for item in value):
        prompts = value
    else:
        prompts = [value]
    if len(prompts) > MAX_CHOICES:
        raise _refusal("value", f"{len(prompts)} prompts given; at most {MAX_CHOICES} are supported")
    for prompt in prompts:
        if isinstance(prompt, str):
            continue
        if not prompt:
            raise _refusal("value", "a prompt has no tokens")
        if not all(type(token) is int and 0 <= token <= _INT32_MAX for token in prompt):
            raise _refusal("value", "a list that is a prompt must hold token ids: integers from 0 up")
    return prompts


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "best_of": (None, 1),
        "echo": (None, False),
        "logprobs": (None,),
        "suffix": (None, ""),
    }

    prompt: Annotated[
        list[str | list[int]],
        PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]

    @model_validator(mode="after")
    def _limits(self) -> CompletionRequest:
        if len(self.prompt) * self.num_choices > MAX_CHOICES:
            detail = f"{len(self.prompt)} prompts times n={self.num_choices}: more than {MAX_CHOICES} answers"
            raise _refusal("value", detail, "prompt")
        if self.max_tokens is None:
            self.max_tokens = DEFAULT_COMPLETION_TOKENS
        return self


# --- parsing ------------------------------------------------------------------------------------------------

RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)


def parse_request(kind: type[RequestT], body: Any) -> RequestT:
    """`body`, a decoded JSON value, as a request of `kind`.

    Raises UnsupportedFieldError for fields that are unknown or not implemented and RequestError for wrong
    types and values, the first problem only; `field` is its path, such as `messages[0].role`.
    """
    if not isinstance(body, dict):
        raise RequestError("the request body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    field = _field_path(body, first)
    if first["type"] == "missing":
        raise RequestError(f"{field} is missing", field=field)
    if first["type"] in ("unknown_parameter", "unsupported_parameter"):
        raise UnsupportedFieldError(first["msg"], field=field)
    raise RequestError(f"{field}: {first['msg']}", field=field)


def _field_path(body: Any, error: ErrorDetails) -> str:
    path = ""
    value = body
    for step in error["loc"]:
        # Locations also hold names of union members and validators, which are nothing in the body.
        if isinstance(value, dict) and step in value:
            path += f".{step}"
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path += f"[{step}]"
        else:
            continue
        value = value[step]
    last = str(error["loc"][-1] if error["type"] == "missing" else error.get("ctx", {}).get("field", ""))
    if last:
        path += last if last.startswith("[") else f".{last}"
    return path.removeprefix(".")


# --- answers ------------------------------------------------------------------------------------------------


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class UsageBody(BaseModel):
    """Token counts. A prompt counts once, however many answers it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishText = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishText


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class Delta(BaseModel):
    """What is new in a chunk. Fields that were not set are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: None
    finish_reason: FinishText | None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: None = None
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

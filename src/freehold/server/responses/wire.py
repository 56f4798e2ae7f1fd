"""The request of OpenAI's Responses API.

Nothing is stored: `store` is accepted and answered with false, and whatever would need a stored response is refused.
Labels, accepted and without effect on the answer, are `user` and `safety_identifier` (see `openai.wire`),
`prompt_cache_key`, `prompt_cache_retention`, `service_tier`, `client_metadata` (Codex sends it) and `metadata`, which
is echoed; so are the wishes `text.verbosity` and `reasoning.summary`. Extensions to OpenAI's fields: top_k, min_p,
presence_penalty, frequency_penalty, repetition_penalty, seed and priority, as in `openai.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from freehold.core.conversation import Conversation, JsonAnswer, Thinking, ToolUse
from freehold.core.logprobs import MOST_ALTERNATIVES
from freehold.core.sampling import SamplingParams
from freehold.server.openai.wire import INT32_MAX, NO_DEFAULTS, SamplingNumbers
from freehold.server.openai.wire_chat import THINKING_OF_EFFORT
from freehold.server.openai.wire_message import MAX_TOOLS
from freehold.server.responses.history import messages_of
from freehold.server.responses.wire_items import InputItem, ResponsesModel
from freehold.server.responses.wire_tools import (
    DeclaredCustom,
    DeclaredTool,
    HostedTool,
    OwnTool,
    ToolChoiceField,
    choice_echo,
    chosen_tools,
)
from freehold.server.wire import refusal

ENCRYPTED_REASONING = "reasoning.encrypted_content"
TEXT_LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What may be asked for beside the answer. Most of it belongs to items that this server never makes."""

_MOST_METADATA = 16

_THINKING_OF_EFFORT: dict[str, Thinking] = {**THINKING_OF_EFFORT, "max": "enabled"}


# --- text and reasoning -------------------------------------------------------------------------------------


class TextFormat(ResponsesModel):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> TextFormat:
        for name, given in (("schema", self.schema_), ("name", self.name)):
            if (self.type == "json_schema") != (given is not None):
                wanted = "is missing" if given is None else "needs 'type': 'json_schema'"
                raise refusal("value", f"{name!r} {wanted}", name)
        return self


class TextField(ResponsesModel):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningField(ResponsesModel):
    """summary is without effect: the whole reasoning is given."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"context": ("auto", "all_turns"), "mode": ("standard",)}

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


# --- the request --------------------------------------------------------------------------------------------


class ResponsesStreamOptions(ResponsesModel):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


def _metadata(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MOST_METADATA:
        raise refusal("value", f"it has {len(value)} pairs; at most {_MOST_METADATA} are supported")
    return value


def _items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class InputFields(ResponsesModel):
    """What makes the prompt; also the body of POST /v1/responses/input_tokens."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "conversation": (),
        "previous_response_id": (),
        "prompt": (),
        "truncation": ("disabled",),
    }

    model: str
    input: Annotated[list[InputItem], FailFast(), BeforeValidator(_items, json_schema_input_type=str | list[InputItem])]
    instructions: str | None = None
    tools: Annotated[list[DeclaredTool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    text: TextField | None = None
    reasoning: ReasoningField | None = None

    @model_validator(mode="after")
    def _tools_that_are_there(self) -> InputFields:
        self.tool_use()
        return self

    def tool_use(self) -> ToolUse:
        """The tools, and whether one must be called."""
        return chosen_tools(self.own_tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @property
    def own_tools(self) -> list[OwnTool]:
        """The tools that the client runs, which are those the model is told of."""
        return [tool for tool in self.tools or () if not isinstance(tool, HostedTool)]

    @property
    def hosted_types(self) -> list[str]:
        """Types of the tools that are left out."""
        return sorted({tool.type for tool in self.tools or () if isinstance(tool, HostedTool)})

    @property
    def custom_tools(self) -> frozenset[str]:
        """Names of the tools that take free text."""
        return frozenset(tool.name for tool in self.own_tools if isinstance(tool, DeclaredCustom))

    @property
    def thinking(self) -> Thinking | None:
        """What the effort means for the model."""
        effort = self.reasoning.effort if self.reasoning else None
        return None if effort is None else _THINKING_OF_EFFORT[effort]

    def _json_answer(self) -> JsonAnswer | None:
        given = self.text.format if self.text else None
        return None if given is None or given.type == "text" else JsonAnswer(given.schema_, where="text.format.schema")

    def _params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams()

    def conversation(self, defaults: Mapping[str, Any] = NO_DEFAULTS) -> Conversation:
        """The request in the form that all APIs share. defaults: of sampling fields that it leaves out. Raises
        RequestError for items that do not fit together and for sampling fields out of range."""
        return Conversation(
            messages=messages_of(self.instructions, self.input),
            params=[self._params(defaults)],
            tool_use=self.tool_use(),
            json_answer=self._json_answer(),
            thinking=self.thinking,
        )


class ResponsesRequest(InputFields, SamplingNumbers):
    """POST /v1/responses."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **InputFields.OFF,
        "access_programs": ({"cyber": "standard"},),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "prompt_cache_options": (),
    }

    max_output_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    include: list[Includable] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_metadata)] = None
    client_metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            raise refusal("value", "'stream_options' needs 'stream': true", "stream_options")
        return self

    @property
    def logprobs(self) -> int | None:
        """How many alternatives each token of the text is to have; None: no log-probabilities at all."""
        if TEXT_LOGPROBS in (self.include or ()) or self.top_logprobs:
            return self.top_logprobs or 0
        return None

    @property
    def seals_reasoning(self) -> bool:
        """Whether reasoning is to come in a form that a stateless client keeps."""
        return ENCRYPTED_REASONING in (self.include or ())

    def echo(self, *, reasons: bool, defaults: Mapping[str, Any] = NO_DEFAULTS) -> dict[str, Any]:
        """The fields of a response that repeat the request. reasons: whether an effort of reasoning has a meaning.
        defaults: of sampling fields that it leaves out."""
        params = self._params(defaults)
        form = self.text.format if self.text else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": self.reasoning.effort if self.reasoning and reasons else None},
            "safety_identifier": self.safety_identifier,
            "temperature": params.temperature,
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"},
                "verbosity": (self.text and self.text.verbosity) or "medium",
            },
            "tool_choice": choice_echo(self.tool_choice),
            "tools": [tool.echo() for tool in self.own_tools],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": params.top_p,
            "user": self.user,
        }

    def _params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams(
            **self.numbers(defaults), seed=self.seed, max_tokens=self.max_output_tokens, logprobs=self.logprobs
        )

    def conversation(self, defaults: Mapping[str, Any] = NO_DEFAULTS) -> Conversation:
        """See InputFields."""
        conversation = super().conversation(defaults)
        return replace(conversation, user=self.safety_identifier or self.user, priority=self.priority)

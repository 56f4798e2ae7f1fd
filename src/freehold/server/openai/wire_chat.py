"""The wire types of OpenAI's chat completions.

Extensions to OpenAI's fields, besides those of `openai.wire`: `chat_template_kwargs`; `thinking`, as MiniMax's own API
has it (`{"type": "enabled" | "adaptive" | "disabled"}`); `provenance`, which has the answer say which blocks of the
prompt it was made from. Reasoning comes and goes as `reasoning_content`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, FailFast, Field, model_validator

from freehold.core.conversation import Conversation, JsonAnswer, Thinking, ToolChoice, ToolUse
from freehold.core.logprobs import MOST_ALTERNATIVES
from freehold.server.answer import FinishText
from freehold.server.openai.history import chat_messages
from freehold.server.openai.provenance import ProvenanceBody
from freehold.server.openai.wire import INT32_MAX, NO_DEFAULTS, SamplingFields, UsageBody
from freehold.server.openai.wire_message import MAX_TOOLS, ChatMessage, ToolName
from freehold.server.wire import WireModel, refusal, shown

THINKING_OF_EFFORT: dict[str, Thinking] = {
    "none": "disabled",
    "minimal": "adaptive",
    "low": "adaptive",
    "medium": "adaptive",
    "high": "enabled",
    "xhigh": "enabled",
}
"""MiniMax-M3 knows three modes of reasoning; this is what each of OpenAI's efforts means here."""


# --- tools --------------------------------------------------------------------------------------------------


class FunctionTool(WireModel):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(WireModel):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(WireModel):
    name: ToolName


class NamedTool(WireModel):
    type: Literal["function"]
    function: NamedFunction


class JsonSchemaFormat(WireModel):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(WireModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            wanted = "is missing" if self.json_schema is None else "needs 'type': 'json_schema'"
            raise refusal("value", f"'json_schema' {wanted}", "json_schema")
        return self

    def json_answer(self) -> JsonAnswer | None:
        """What the answer's text must be."""
        if self.type == "text":
            return None
        return JsonAnswer(None if self.json_schema is None else self.json_schema.schema_)


class ThinkingField(WireModel):
    type: Literal["enabled", "adaptive", "disabled"]


def declarations(
    tools: list[Tool] | None,
    *,
    choice: ToolChoice | None = None,
    only: str | None = None,
    parallel: bool | None = None,
) -> ToolUse:
    """The tools as this API declares them."""
    declared = [
        {"type": "function", "function": tool.function.model_dump(exclude_none=True, exclude={"strict"})}
        for tool in tools or ()
    ]
    return tool_use(declared, choice=choice, only=only, parallel=parallel)


def tool_use(
    tools: list[dict[str, Any]],
    *,
    choice: ToolChoice | None,
    only: str | None,
    parallel: bool | None,
) -> ToolUse:
    """The tools of a request. Raises the wire's own refusal for names that come twice, and for a choice of none."""
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise refusal("value", f"the function {shown(twice)} is declared twice", "tools")
    if only is not None and only not in names:
        raise refusal("value", f"there is no function {shown(only)} among the tools", "tool_choice")
    if choice == "required" and not tools:
        raise refusal("value", "a tool is required, but no tools are given", "tool_choice")
    return ToolUse(tuple(tools), "required" if only else choice or "auto", only, parallel is not False)


def _template_kwargs(value: Any) -> Any:
    if isinstance(value, dict):
        for name in value:
            if not name.isidentifier() or name in ("self", "messages", "tools"):
                raise refusal("value", f"{shown(name)} cannot be passed to a chat template", name[:80])
    return value


# --- the request --------------------------------------------------------------------------------------------


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (None,),
        "function_call": (None, "none", "auto"),
        "functions": (None, []),
        "metadata": (None, {}),
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "prediction": (None,),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
        "verbosity": (None,),
        "web_search_options": (None,),
    }

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1)]
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking: ThinkingField | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(_template_kwargs)] = None
    provenance: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> ChatRequest:
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                detail = f"{self.max_completion_tokens} contradicts 'max_tokens', {self.max_tokens}; give one"
                raise refusal("value", detail, "max_completion_tokens")
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise refusal("value", "'top_logprobs' needs 'logprobs': true", "top_logprobs")
        if self.thinking is not None and self.reasoning_effort is not None:
            raise refusal("value", "it stands beside 'reasoning_effort'; give one", "thinking")
        self.tool_use()
        return self

    def tool_use(self) -> ToolUse:
        """The tools, and whether one must be called."""
        named = self.tool_choice if isinstance(self.tool_choice, NamedTool) else None
        return declarations(
            self.tools,
            choice=None if isinstance(self.tool_choice, NamedTool) else self.tool_choice,
            only=named.function.name if named else None,
            parallel=self.parallel_tool_calls,
        )

    def logprob_fields(self) -> dict[str, Any]:
        """See SamplingFields."""
        return {"logprobs": (self.top_logprobs or 0) if self.logprobs else None}

    def conversation(self, defaults: Mapping[str, Any] = NO_DEFAULTS) -> Conversation:
        """The request in the form that all APIs share. defaults: of sampling fields that it leaves out. Raises
        RequestError for results of tools that belong to no call, and for sampling fields out of range."""
        thinking: Thinking | None = self.thinking.type if self.thinking else None
        if self.reasoning_effort is not None:
            thinking = THINKING_OF_EFFORT[self.reasoning_effort]
        return Conversation(
            messages=chat_messages(self.messages),
            params=[self.sampling(choice, defaults) for choice in range(self.num_choices)],
            tool_use=self.tool_use(),
            json_answer=self.response_format.json_answer() if self.response_format else None,
            thinking=thinking,
            template_kwargs=self.chat_template_kwargs or {},
            user=self.safety_identifier or self.user,
            priority=self.priority,
            provenance=bool(self.provenance),
        )


# --- answers ------------------------------------------------------------------------------------------------


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of every token that was sampled, those of reasoning and tool calls as well."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionBody(BaseModel):
    name: str
    arguments: str


class ToolCallBody(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionBody


class AnswerMessage(BaseModel):
    """`reasoning_content` and `tool_calls` are left out where there are none."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallBody] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishText
    provenance: ProvenanceBody | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    """`id`, `type` and the function's name come with a call's first chunk, pieces of its arguments with the others."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(BaseModel):
    """What is new in a chunk. Fields that were not set are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishText | None
    provenance: ProvenanceBody | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None

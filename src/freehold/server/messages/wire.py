"""The wire types of Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens.

Fields that are not known here are accepted, as new versions of clients send new ones; `unheeded_fields` names them, for
the log. Known fields with wrong values are refused, and so is what would change an answer and cannot be done. What
each field means here is written in docs/reference/messages.md.

Extensions to Anthropic's fields: seed, min_p and priority, as in the other APIs here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from freehold.core.conversation import Conversation, JsonAnswer, Thinking, ToolUse
from freehold.core.sampling import SamplingParams
from freehold.server.messages.history import chat_messages
from freehold.server.messages.wire_blocks import Message, TextBlock, TolerantModel, as_blocks
from freehold.server.openai.wire import INT32_MAX, MAX_STOP_TEXTS, NO_DEFAULTS
from freehold.server.openai.wire_chat import tool_use
from freehold.server.openai.wire_message import MAX_TOOLS, ToolName
from freehold.server.wire import refusal, shown

# Kinds of Anthropic's own tools, without the date that ends their names.
_RUN_BY_SERVERS = re.compile(
    r"(?:web_search|web_fetch|code_execution|tool_search_tool_bm25|tool_search_tool_regex|advisor)_\d{8}"
    r"|tool_search_tool_(?:bm25|regex)|mcp_toolset"
)
_RUN_BY_CLIENTS = re.compile(r"(?:bash|text_editor|computer|memory|computer_toolset|browser_toolset)_\d{8}")


# --- tools --------------------------------------------------------------------------------------------------


class MessagesTool(TolerantModel):
    """A tool. One that Anthropic's servers run themselves has a `type`, and no schema."""

    type: str | None = None
    name: ToolName | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _can_be_declared(self) -> MessagesTool:
        if self.run_by_server:
            return self
        if self.type not in (None, "custom"):
            what = "Claude alone knows its schema" if _RUN_BY_CLIENTS.fullmatch(self.type) else "this type is not known"
            detail = f"tools of type {shown(self.type)} are not supported: {what}; declare it with an 'input_schema'"
            raise refusal("unsupported", detail, "type")
        for name in ("name", "input_schema"):
            if getattr(self, name) is None:
                raise refusal("value", f"{name!r} is missing", name)
        return self

    @property
    def run_by_server(self) -> bool:
        """Whether the tool would be run by the server that is asked; none is here."""
        return self.type is not None and _RUN_BY_SERVERS.fullmatch(self.type) is not None

    def declaration(self) -> dict[str, Any]:
        """The tool in the form of OpenAI's chat API."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


class ToolChoiceField(TolerantModel):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _name_where_it_belongs(self) -> ToolChoiceField:
        if (self.type == "tool") != (self.name is not None):
            detail = "it is missing" if self.name is None else "it needs 'type': 'tool'"
            raise refusal("value", detail, "name")
        return self


# --- how to answer ------------------------------------------------------------------------------------------


class ThinkingConfig(TolerantModel):
    """How much to reason. budget_tokens: has no effect, as models here know no budgets. display: "omitted" leaves the
    reasoning out of the answer; it is still remembered for the turns that follow."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(TolerantModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] | bool = Field(alias="schema")


class OutputConfig(TolerantModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesMetadata(TolerantModel):
    user_id: str | None = None


# --- requests -----------------------------------------------------------------------------------------------

_LABELS = frozenset({"betas", "cache_control", "service_tier", "user_profile_id", "workspace_id", "inference_geo"})
"""Fields without any effect on an answer, wherever they are sent."""


class CountTokensRequest(TolerantModel):
    """POST /v1/messages/count_tokens; also what it shares with /v1/messages."""

    model: str
    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    system: Annotated[
        list[TextBlock] | None,
        FailFast(),
        BeforeValidator(as_blocks, json_schema_input_type=str | list[TextBlock] | None),
    ] = None
    tools: Annotated[list[MessagesTool] | None, FailFast(), Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoiceField | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    mcp_servers: list[Any] | None = None

    @model_validator(mode="after")
    def _what_goes_together(self) -> CountTokensRequest:
        if all(message.role == "system" for message in self.messages):
            raise refusal("value", "it has no message of the user", "messages")
        if self.mcp_servers:
            raise refusal("unsupported", "this server connects to no others; call them from your client", "mcp_servers")
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            raise refusal("value", "it stands beside 'output_config.format'; give one", "output_format")
        named = self.tool_choice.name if self.tool_choice else None
        if any(tool.run_by_server and named is not None and tool.name == named for tool in self.tools or ()):
            detail = f"{shown(named)} would be run by the server, and this one runs no tools; choose another"
            raise refusal("unsupported", detail, "tool_choice")
        self.tool_use()
        return self

    def tool_use(self) -> ToolUse:
        """The tools, without those that no one here would run, and whether one must be called."""
        choice = self.tool_choice
        return tool_use(
            [tool.declaration() for tool in self.tools or () if not tool.run_by_server],
            choice=None if choice is None or choice.type == "tool" else _CHOICES[choice.type],
            only=choice.name if choice else None,
            parallel=not (choice and choice.disable_parallel_tool_use),
        )

    def thinking_mode(self) -> Thinking | None:
        """Effort and `thinking` as one. Without either the model's chat format decides; the two highest efforts ask a
        model that may choose to reason always."""
        effort = self.output_config.effort if self.output_config else None
        if self.thinking is not None and self.thinking.type in ("enabled", "disabled"):
            return "enabled" if self.thinking.type == "enabled" else "disabled"
        if effort in ("xhigh", "max"):
            return "enabled"
        return None if self.thinking is None and effort is None else "adaptive"

    def json_answer(self) -> JsonAnswer | None:
        """What the answer's text must be."""
        if self.output_format is not None:
            return JsonAnswer(self.output_format.schema_, where="output_format.schema")
        chosen = self.output_config.format if self.output_config else None
        return None if chosen is None else JsonAnswer(chosen.schema_, where="output_config.format.schema")

    def conversation(self, defaults: Mapping[str, Any] = NO_DEFAULTS) -> Conversation:
        """The chat whose prompt is meant. defaults: without effect, as there is no answer. Raises RequestError for
        results of calls that were not made, and for what `CalledTools` refuses."""
        return Conversation(
            messages=chat_messages(self.system or (), self.messages),
            params=(),
            tool_use=self.tool_use(),
            json_answer=self.json_answer(),
            thinking=self.thinking_mode(),
        )


_CHOICES: dict[str, Literal["auto", "none", "required"]] = {"auto": "auto", "none": "none", "any": "required"}


def _stop_sequences(value: Any) -> Any:
    # Before the items are looked at: each wrong one would be described.
    if isinstance(value, list) and len(value) > MAX_STOP_TEXTS:
        raise refusal("value", f"it has {len(value)} items; at most {MAX_STOP_TEXTS} are supported")
    return value


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=0, le=INT32_MAX)
    stream: bool | None = None
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None, FailFast(), BeforeValidator(_stop_sequences)
    ] = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = Field(None, le=INT32_MAX)
    metadata: MessagesMetadata | None = None
    min_p: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    priority: int | None = Field(None, ge=-(2**31), le=INT32_MAX)

    @model_validator(mode="after")
    def _an_answer_is_asked_for(self) -> MessagesRequest:
        if self.max_tokens == 0:
            raise refusal("value", "0, to read a prompt without an answer, is not supported; ask for 1", "max_tokens")
        if self.messages[-1].role == "assistant":
            detail = (
                "this model does not support assistant message prefill. "
                "The conversation must end with a user message, not with the assistant's"
            )
            raise refusal("unsupported", detail, f"messages[{len(self.messages) - 1}].role")
        return self

    @property
    def shows_thinking(self) -> bool:
        """Whether reasoning is part of the answer that the client gets."""
        return self.thinking is None or self.thinking.display != "omitted"

    def conversation(self, defaults: Mapping[str, Any] = NO_DEFAULTS) -> Conversation:
        """The request in the form that all APIs share. defaults: of sampling fields that it leaves out. Raises
        RequestError as above, and for sampling fields."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
        given = {**defaults, **{name: value for name in names if (value := getattr(self, name)) is not None}}
        chat = super().conversation()
        return Conversation(
            messages=chat.messages,
            params=[SamplingParams(**given, stop=tuple(self.stop_sequences or ()))],
            tool_use=chat.tool_use,
            json_answer=chat.json_answer,
            thinking=chat.thinking,
            user=self.metadata.user_id if self.metadata else None,
            priority=self.priority,
        )


def unheeded_fields(request: CountTokensRequest) -> Iterator[str]:
    """What of a request has no effect here, though elsewhere it might: fields that are not known, tools that a server
    would run."""
    for name in request.model_extra or ():
        if name not in _LABELS:
            yield name
    for tool in request.tools or ():
        if tool.run_by_server:
            yield f"tools of type {tool.type}"

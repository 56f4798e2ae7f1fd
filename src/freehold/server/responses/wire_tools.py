"""The tools of OpenAI's Responses API, and the choice among them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from freehold.core.conversation import ToolChoice, ToolUse
from freehold.server.openai.wire_chat import tool_use
from freehold.server.openai.wire_message import MAX_TOOLS, ToolName
from freehold.server.responses.freeform import freeform_parameters
from freehold.server.responses.wire_items import ResponsesModel
from freehold.server.wire import refusal, shown

_OWN_TOOLS = ("function", "custom")


class _DeclaredTool(ResponsesModel):
    """defer_loading is without effect: there is no search for tools, so all are declared at once."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "output_schema": (),
    }

    name: ToolName
    description: str | None = None
    defer_loading: bool | None = None


class DeclaredFunction(_DeclaredTool):
    type: Literal["function"]
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """In the form of OpenAI's chat API."""
        names = {"name", "description", "parameters"}
        return {"type": "function", "function": self.model_dump(include=names, exclude_none=True)}

    def echo(self) -> dict[str, Any]:
        """As it stands in a response."""
        return self.model_dump(exclude={"defer_loading"})


class FreeformFormat(ResponsesModel):
    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _grammar_where_it_belongs(self) -> FreeformFormat:
        for name in ("syntax", "definition"):
            if (self.type == "grammar") != (getattr(self, name) is not None):
                wanted = "is missing" if self.type == "grammar" else "needs 'type': 'grammar'"
                raise refusal("value", f"{name!r} {wanted}", name)
        return self


class DeclaredCustom(_DeclaredTool):
    """A tool that takes free text. A grammar of that text is shown to the model; it is not enforced."""

    type: Literal["custom"]
    format: FreeformFormat | None = None

    def for_chat(self) -> dict[str, Any]:
        """As a function with one string argument, in the form of OpenAI's chat API."""
        hint = "The whole input of the tool, as plain text."
        if self.format is not None and self.format.definition is not None:
            kind = "regular expression" if self.format.syntax == "regex" else "Lark grammar"
            hint += f" It must match this {kind}:\n{self.format.definition}"
        function = {"name": self.name, "description": self.description, "parameters": freeform_parameters(hint)}
        return {"type": "function", "function": {name: given for name, given in function.items() if given is not None}}

    def echo(self) -> dict[str, Any]:
        """As it stands in a response."""
        form = self.format or FreeformFormat(type="text")
        return {**self.model_dump(exclude={"defer_loading"}), "format": form.model_dump(exclude_none=True)}


class HostedTool(BaseModel):
    """A tool that OpenAI runs itself, or that Codex sends to OpenAI's models alone. Clients send these unasked, so
    they are left out instead of refused; what they hold does not matter."""

    type: str


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _tool_kind(value: Any) -> str | None:
    kind = _type_of(value)
    if not isinstance(kind, str) or kind in _OWN_TOOLS:
        return kind if isinstance(kind, str) else None
    # A slip of the pen is not left out in silence.
    return None if difflib.get_close_matches(kind[:80], _OWN_TOOLS, n=1) else "hosted"


def _refuse_the_form_of_chats(value: Any) -> None:
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        detail = "this API takes a function's fields beside 'type', not inside 'function'"
        raise refusal("unsupported", detail, "function")


def _known_tool(value: Any) -> Any:
    _refuse_the_form_of_chats(value)
    if _tool_kind(value) is None:
        detail = f"a tool needs a type, such as 'function' or 'custom'; here it is {shown(_type_of(value))}"
        raise refusal("value", detail, "type" if isinstance(value, dict) else "")
    return value


DeclaredTool = Annotated[
    Annotated[
        Annotated[DeclaredFunction, Tag("function")]
        | Annotated[DeclaredCustom, Tag("custom")]
        | Annotated[HostedTool, Tag("hosted")],
        Discriminator(_tool_kind),
    ],
    BeforeValidator(_known_tool),
]


class NamedChoice(ResponsesModel):
    type: Literal["function", "custom"]
    name: str


AllowedTool = Annotated[
    Annotated[
        Annotated[NamedChoice, Tag("function")]
        | Annotated[NamedChoice, Tag("custom")]
        | Annotated[HostedTool, Tag("hosted")],
        Discriminator(_tool_kind),
    ],
    BeforeValidator(_known_tool),
]


class AllowedChoice(ResponsesModel):
    """Only these tools, of those that are declared. Hosted ones among them are left out as they are of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(max_length=MAX_TOOLS)]


def _choice_kind(value: Any) -> str | None:
    kind = "mode" if isinstance(value, str) else _type_of(value)
    return kind if isinstance(kind, str) else None


def _known_choice(value: Any) -> Any:
    _refuse_the_form_of_chats(value)
    if value is not None and _choice_kind(value) not in ("mode", "function", "custom", "allowed_tools"):
        detail = f"a choice of the type {shown(_type_of(value))} is not supported; choose 'function' or 'custom' tools"
        raise refusal("unsupported", detail, "type" if isinstance(value, dict) else "")
    return value


ToolChoiceField = Annotated[
    Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("mode")]
        | Annotated[NamedChoice, Tag("function")]
        | Annotated[NamedChoice, Tag("custom")]
        | Annotated[AllowedChoice, Tag("allowed_tools")],
        Discriminator(_choice_kind),
    ]
    | None,
    BeforeValidator(_known_choice),
]


OwnTool = DeclaredFunction | DeclaredCustom


Choice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


def choice_echo(choice: Choice | None) -> str | dict[str, Any]:
    """As it stands in a response; what stood for hosted tools is left out."""
    if isinstance(choice, AllowedChoice):
        named = [tool.model_dump() for tool in choice.tools if isinstance(tool, NamedChoice)]
        return {"type": choice.type, "mode": choice.mode, "tools": named}
    return choice.model_dump() if isinstance(choice, NamedChoice) else choice or "auto"


def chosen_tools(
    tools: Sequence[OwnTool],
    choice: Choice | None,
    *,
    parallel: bool | None,
) -> ToolUse:
    """The tools of a request. Raises the wire's own refusal for a choice of tools that are not declared."""
    only = None
    mode: ToolChoice | None = None
    if isinstance(choice, NamedChoice):
        only = choice.name
        if not any((tool.type, tool.name) == (choice.type, only) for tool in tools):
            raise refusal("value", f"there is no {choice.type} tool {shown(only)} among the tools", "tool_choice")
    elif isinstance(choice, AllowedChoice):
        allowed = {(tool.type, tool.name) for tool in choice.tools if isinstance(tool, NamedChoice)}
        if missing := sorted(allowed - {(tool.type, tool.name) for tool in tools}):
            raise refusal("value", f"there is no tool {shown(missing[0][1])} among the tools", "tool_choice")
        tools = [tool for tool in tools if (tool.type, tool.name) in allowed]
        mode = choice.mode
    else:
        mode = choice
    return tool_use([tool.for_chat() for tool in tools], choice=mode, only=only, parallel=parallel)

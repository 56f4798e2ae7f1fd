"""A chat as all three APIs ask for it: the one form between their wire types and the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from freehold.core.sampling import SamplingParams

Thinking = Literal["enabled", "disabled", "adaptive"]
ToolChoice = Literal["auto", "none", "required"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What tools may be called, and whether one must be.

    tools: declarations in the form of OpenAI's chat API, `{"type": "function", "function": {...}}`; empty: none.
    choice: "auto", "none" or "required". only: the one function that must be called; then choice is "required".
    parallel: whether one answer may hold several calls.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    choice: ToolChoice = "auto"
    only: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """The answer's text must be JSON: of this schema, or any object where there is none.

    where: what the API calls the field, for refusals.
    """

    schema: Mapping[str, Any] | bool | None = None
    where: str = field(default="response_format", compare=False)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One chat request.

    messages: in the form of OpenAI's chat API, as chat templates take them: `role`, `content` (a text), for the
        assistant `reasoning_content` and `tool_calls`, for tools `tool_call_id`. Absent fields are left out.
    params: sampling fields of the first answer; one for each further choice.
    thinking: how much the model is to reason; None: as its chat format does by itself.
    template_kwargs: further variables of the chat template; untrusted.
    """

    messages: Sequence[Mapping[str, Any]]
    params: Sequence[SamplingParams]
    tool_use: ToolUse = ToolUse()
    json_answer: JsonAnswer | None = None
    thinking: Thinking | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    priority: int | None = None
    provenance: bool = False

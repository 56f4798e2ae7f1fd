"""What an answer is made of: reasoning, text and tool calls, in the pieces in which they become certain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """More of the model's reasoning; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPart:
    """More of the answer's text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins. index counts the calls of an answer from 0; `name` is whole."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments. All pieces of a call, joined, are one JSON object, if the call ends complete."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A tool call ended. complete: False if the answer broke off inside it, so that its arguments are no whole JSON."""

    index: int
    complete: bool = True


Part = ReasoningPart | TextPart | ToolCallStart | ToolCallArguments | ToolCallEnd
"""One call's start, arguments and end come in this order, and before the next call's start."""

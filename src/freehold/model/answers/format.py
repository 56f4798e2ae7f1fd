"""Which format a model writes its answers in, as its chat template tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from freehold.core.errors import ArgumentError
from freehold.model.answers.json_calls import CALL_OPEN, THINK_OPEN, JsonCallParser, Start
from freehold.model.answers.m3 import THINKING_MODES, M3Parser
from freehold.model.answers.parser import AnswerParser
from freehold.model.answers.plain import PlainParser
from freehold.model.m3_tokens import TOOL_NAMESPACE

_STARTS: dict[str | None, Start] = {"enabled": "reasoning", "disabled": "text", "adaptive": "either", None: "either"}


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How answers are written.

    name: "minimax_m3", "json_calls" (the `<tool_call>` family) or "plain".
    has_reasoning: whether an answer may hold reasoning apart from its text.
    has_tool_calls: whether it may hold tool calls.
    thinking_modes: what `thinking_mode` may be; empty where the template has no such variable.
    """

    name: Literal["minimax_m3", "json_calls", "plain"]
    has_reasoning: bool = False
    has_tool_calls: bool = False
    thinking_modes: tuple[str, ...] = ()

    @classmethod
    def of_template(cls, template: str | None) -> AnswerFormat:
        """The format that a chat template's markers belong to; "plain" for none, and for a base model."""
        if template is not None and TOOL_NAMESPACE in template:
            return cls("minimax_m3", has_reasoning=True, has_tool_calls=True, thinking_modes=THINKING_MODES)
        if template is not None and CALL_OPEN in template:
            return cls("json_calls", has_reasoning=THINK_OPEN in template, has_tool_calls=True)
        return cls("plain")

    @property
    def default_thinking_mode(self) -> str | None:
        """The mode that counts where none is given; None where there are no modes."""
        return "adaptive" if self.thinking_modes else None

    @property
    def needs_special_tokens(self) -> bool:
        """Whether its markers are special tokens, so that an answer must be decoded with them kept."""
        return self.name != "plain"

    def parser(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking_mode: str | None = None,
        calls: bool = True,
    ) -> AnswerParser:
        """A parser for one answer.

        tools: declarations as the OpenAI API has them; calls of other tools are read too.
        calls: False: none are wanted, and what looks like one is text.
        thinking_mode: how the answer begins: "enabled" inside reasoning, "disabled" as text, "adaptive" or None with
            a tag that tells. Formats without reasoning take None alone.
        Raises ArgumentError for a thinking_mode that the format does not have.
        """
        if thinking_mode is not None and not (self.has_reasoning and thinking_mode in THINKING_MODES):
            known = ", ".join(map(repr, THINKING_MODES)) if self.has_reasoning else "None alone"
            raise ArgumentError(f"thinking_mode is {thinking_mode!r}; for this model it may be {known}")
        if self.name == "minimax_m3":
            return M3Parser(tools=tools, thinking_mode=thinking_mode, calls=calls)
        if self.name == "json_calls":
            return JsonCallParser(start=_STARTS[thinking_mode] if self.has_reasoning else "text", calls=calls)
        return PlainParser()

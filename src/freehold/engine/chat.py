"""A conversation as one model takes it: its prompt, what its answers must be, how they are read and remembered."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from freehold.core.conversation import Conversation, JsonAnswer, Thinking, ToolUse
from freehold.core.errors import UnsupportedFieldError
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.model import answer_grammar
from freehold.model.answer_grammar import AnswerShape, Family, Reasoning
from freehold.model.answers.parser import AnswerParser
from freehold.model.answers.plain import PlainParser
from freehold.model.chat import ChatFormat
from freehold.model.chat_replay import ChatEncoder, EncodedChat
from freehold.model.chat_visuals import take_visuals
from freehold.model.m3_tokens import TOOL_NAMESPACE

if TYPE_CHECKING:
    from freehold.engine.llm import LLM

_JSON_LIST = "<tool_call>["
"""In templates of models that write all their calls as one list."""
_NEVER = -100.0
_MOST_MESSAGES = 512
"""The places of so many messages are found; more would take long, message by message."""


class Chat:
    """One conversation over one model; see `freehold.server.backend.ChatPrompt`. Make it with `prepare_chat`."""

    def __init__(
        self,
        encoder: ChatEncoder,
        encoded: EncodedChat,
        asked: Asked,
        grammar: str | None,
        forbidden: Sequence[int],
        *,
        special: bool,
        calls: bool,
        ids: list[int],
        visuals: tuple[Placed, ...],
    ) -> None:
        self._encoder, self._encoded, self._asked, self._calls = encoder, encoded, asked, calls
        self._grammar, self._forbidden, self._special = grammar, tuple(forbidden), special
        self._ids, self._visuals = ids, visuals

    @property
    def ids(self) -> list[int]:
        """Token ids, up to the point where the answer starts."""
        return self._ids

    @property
    def visuals(self) -> tuple[Placed, ...]:
        """Images and pieces of video, with the positions of the prompt that they take."""
        return self._visuals

    def params(self, params: SamplingParams) -> SamplingParams:
        """`params` with what the conversation demands of its answer."""
        biases = {**params.logit_bias, **dict.fromkeys(self._forbidden, _NEVER)}
        return replace(params, grammar=self._grammar, logit_bias=biases, skip_special_tokens=not self._special)

    def parser(self) -> AnswerParser:
        """A new parser for one answer."""
        asked = self._asked
        if not self._special:
            return PlainParser()
        return asked.chat_format.answer_parser(tools=asked.tools or None, calls=self._calls, **asked.options)

    def remember(self, message: Mapping[str, Any], token_ids: Sequence[int]) -> None:
        """The message that these tokens became; when it comes back, it becomes them again."""
        self._encoder.remember(self._encoded, message, token_ids)

    def message_ranges(self) -> list[tuple[int, int]]:
        """Tokens [first, end) of each message, as far as the template writes one message after another; empty for
        more than 512 messages."""
        messages = self._asked.messages
        if len(messages) > _MOST_MESSAGES:
            return []
        ends = [0]
        for count in range(1, len(messages)):
            part = self._asked.encode(self._encoder, messages[:count], add_generation_prompt=False).ids
            ends.append(max(ends[-1], _shared(part, self._encoded.ids)))
        ends.append(len(self.ids))
        return [(first, end) for first, end in itertools.pairwise(ends)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is rendered. tools: those that are declared. options: further variables of the template."""

    chat_format: ChatFormat
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    scope: str

    def encode(
        self, encoder: ChatEncoder, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> EncodedChat:
        """The tokens of the first messages."""
        return encoder.encode(
            messages,
            tools=list(self.tools) or None,
            scope=self.scope,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=self.options,
        )


def prepare_chat(llm: LLM, conversation: Conversation, *, scope: str = "", local: bool = False) -> Chat:
    """Renders a conversation and works out what its answers must be.

    scope: whose conversation it is; answers to others are never recognised in it.
    local: whether images may be named by a path on this machine; never for what comes over a network.
    Raises TemplateError as `ChatFormat.render` does, UnsupportedFieldError (with `field` "tools", "thinking" or
    "response_format") for what the model cannot do, RequestError for a schema that cannot be enforced.
    """
    chat_format, use = llm.chat_format, conversation.tool_use
    written = chat_format.answer_format
    if use.tools and not (chat_format.takes_tools and written.has_tool_calls):
        raise UnsupportedFieldError("this model cannot call tools; send the request without them", field="tools")
    shape = AnswerShape.of(_family(chat_format), llm.tokenizer)
    marker = shape.special_ids.get(TOOL_NAMESPACE if written.name == "minimax_m3" else "<tool_call>")
    # A choice of "none" keeps the declarations in the prompt, so that its beginning stays the same, if a single
    # token can be forbidden instead.
    kept = use.choice != "none" or marker is not None
    forbidden = [marker] if use.tools and use.choice == "none" and marker is not None else []
    options = {**conversation.template_kwargs, **_thinking_options(chat_format, conversation.thinking)}
    messages, frames = take_visuals(llm.visual_chat, conversation.messages, local=local)
    asked = Asked(chat_format, messages, use.tools if kept else (), options, scope)
    encoded = asked.encode(llm.chat_encoder, messages)
    ids, visuals = llm.visual_chat.place(encoded.ids, frames) if llm.visual_chat and frames else (encoded.ids, ())
    grammar = _grammar(shape, use, conversation.json_answer, _reasoning(chat_format, asked))
    # Markers are special tokens; they are wanted where something is to be read out of the answer.
    calls = bool(use.tools) and use.choice != "none"
    special = written.needs_special_tokens and (written.has_reasoning or calls)
    return Chat(
        llm.chat_encoder, encoded, asked, grammar, forbidden, special=special, calls=calls, ids=ids, visuals=visuals
    )


def _family(chat_format: ChatFormat) -> Family:
    name = chat_format.answer_format.name
    if name == "json_calls":
        return "json_list" if _JSON_LIST in (chat_format.template or "") else "json_objects"
    return name


def _thinking_options(chat_format: ChatFormat, thinking: Thinking | None) -> dict[str, Any]:
    """The template's variables for a mode of reasoning. Raises UnsupportedFieldError where there is no such mode."""
    if thinking is None:
        return {}
    if chat_format.answer_format.thinking_modes:
        return {"thinking_mode": thinking}
    if "enable_thinking" in chat_format.variables:
        return {} if thinking == "adaptive" else {"enable_thinking": thinking == "enabled"}
    if thinking == "disabled":
        return {}
    raise UnsupportedFieldError(
        "this model has no mode of reasoning to choose; leave 'thinking' and 'reasoning_effort' out", field="thinking"
    )


def _reasoning(chat_format: ChatFormat, asked: Asked) -> Reasoning:
    """Whether the answer begins with reasoning."""
    written = chat_format.answer_format
    if not written.has_reasoning:
        return "none"
    mode = asked.options.get("thinking_mode") if written.thinking_modes else None
    mode = mode or written.default_thinking_mode or chat_format.opened_mode(asked.tools or None, asked.options)
    return {"enabled": "enabled", "disabled": "none"}.get(str(mode), "adaptive")  # type: ignore[return-value]


def _grammar(shape: AnswerShape, use: ToolUse, wanted: JsonAnswer | None, reasoning: Reasoning) -> str | None:
    """The grammar of the whole answer; None where it is free."""
    tools = [
        answer_grammar.Tool(tool["function"]["name"], tool["function"].get("parameters"))
        for tool in use.tools
        if use.only in (None, tool["function"]["name"])
    ]
    if use.choice == "required":
        return answer_grammar.tool_call_grammar(shape, tools, parallel=use.parallel, reasoning=reasoning)
    if wanted is None:
        return None
    schema = {"type": "object"} if wanted.schema is None else wanted.schema
    if tools and use.choice == "auto":
        return answer_grammar.tool_call_or_json_grammar(
            shape, tools, schema, parallel=use.parallel, reasoning=reasoning, name=wanted.where
        )
    return answer_grammar.json_schema_grammar(schema, shape, reasoning=reasoning, name=wanted.where)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

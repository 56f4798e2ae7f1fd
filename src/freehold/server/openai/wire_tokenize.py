"""The wire types of /v1/tokenize and /v1/detokenize, which OpenAI does not have; names as in vLLM."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, FailFast, Field, model_validator

from freehold.core.conversation import Conversation
from freehold.server.openai.history import chat_messages
from freehold.server.openai.wire import INT32_MAX
from freehold.server.openai.wire_chat import Tool, declarations
from freehold.server.openai.wire_message import ChatMessage
from freehold.server.wire import WireModel, refusal


class TokenizeRequest(WireModel):
    """POST /v1/tokenize: of a plain `prompt`, as /v1/completions would have it, or of a chat's `messages` as its
    answer would see them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage] | None, FailFast(), Field(min_length=1)] = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise refusal("value", "give 'prompt' or 'messages', one of them", "prompt")
        if self.messages is None and (self.tools or self.chat_template_kwargs):
            raise refusal("value", "it needs 'messages'", "tools" if self.tools else "chat_template_kwargs")
        for name in ("add_special_tokens", "parse_special"):
            if self.prompt is None and getattr(self, name) is not None:
                raise refusal("value", "it needs a 'prompt'; chat templates write special tokens themselves", name)
        return self

    def conversation(self) -> Conversation:
        """The chat whose prompt is meant. Raises RequestError for results of tools that belong to no call."""
        return Conversation(
            messages=chat_messages(self.messages or ()),
            params=(),
            tool_use=declarations(self.tools),
            template_kwargs=self.chat_template_kwargs or {},
        )


class TokenizeAnswer(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(WireModel):
    """POST /v1/detokenize."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=INT32_MAX)]], FailFast()]


class DetokenizeAnswer(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """GET /tokenizer_info. null: the model has none."""

    bos_token: str | None
    eos_token: str | None
    chat_template: str | None

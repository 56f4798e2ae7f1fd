"""From messages to the token ids that a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from freehold.core.errors import TemplateError

if TYPE_CHECKING:
    from freehold.engine.llm import LLM

# Parameters of ChatFormat.render itself: a client's template options must not stand in for them.
_RESERVED = ("add_generation_prompt", "messages", "self", "tools")


def encode_chat(
    llm: LLM, messages: Sequence[Mapping[str, Any]], template_options: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of a conversation, up to the point where the answer starts.

    template_options: further variables of the model's chat template, of any name and value.
    Raises TemplateError for names that are no options, and as ChatFormat.render does.
    """
    options = template_options or {}
    for name in _RESERVED:
        if name in options:
            raise TemplateError(f"this model's chat template has no option {name!r}; leave it out")
    text = llm.chat_format.render(messages, **options)
    # The template wrote the special tokens as text, the one at the beginning among them.
    return llm.tokenizer.encode(text, allow_special=True, add_bos=False)

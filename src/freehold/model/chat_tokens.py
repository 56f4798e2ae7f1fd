"""From messages to token ids, so that what a user writes can never become a control token.

A template writes control tokens as text, so its output is encoded with special tokens. Text of users, tools and
system prompts that spells such a token is therefore put aside before rendering, and encoded as the plain text it is.
Assistant messages are left alone: models write markers themselves, and get them back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from freehold.model.chat import ChatFormat
from freehold.model.tokenizer import Tokenizer

# Private-use characters: a place holder that a template copies like any other text.
_OPEN, _CLOSE = "\ue9f0", "\ue9f1"
_PLACE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


def encode_chat(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any
) -> list[int]:
    """Token ids of a rendered conversation. Raises TemplateError as `ChatFormat.render` does."""
    aside: list[str] = []
    markers = [re.escape(tokenizer.decode([i], skip_special=False)) for i in sorted(tokenizer.special_ids)]
    pattern = re.compile("|".join([*filter(None, markers), _OPEN, _CLOSE]))

    def put_aside(match: re.Match[str]) -> str:
        aside.append(match.group())
        return f"{_OPEN}{len(aside) - 1}{_CLOSE}"

    def guarded(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(put_aside, value)
        if isinstance(value, list):
            return [guarded(item) for item in value]
        if isinstance(value, Mapping):
            return {key: guarded(item) for key, item in value.items()}
        return value

    safe = [
        dict(m) if m.get("role") == "assistant" else {k: v if k == "role" else guarded(v) for k, v in m.items()}
        for m in messages
    ]
    text = chat_format.render(safe, **template_kwargs)
    ids: list[int] = []
    for place, piece in enumerate(_PLACE.split(text)):
        if place % 2:
            ids += tokenizer.encode(aside[int(piece)], add_bos=False)
        elif piece:
            ids += tokenizer.encode(piece, allow_special=True, add_bos=False)
    return ids

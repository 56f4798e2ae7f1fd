"""From messages to token ids, so that what a user writes can never become a control token.

A template writes control tokens as text, so its output is encoded with special tokens. Text of users, tools and
system prompts that spells such a token, and of tool declarations and options, is therefore put aside before rendering,
and encoded as the plain text it is. Assistant messages are left alone: models write markers themselves, and get them
back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.model.chat import ChatFormat
from freehold.model.chat_pieces import PieceEncoder
from freehold.model.chat_visuals import MARKER, Rows, visual_parts, without_rows, write_rows
from freehold.model.tokenizer import Tokenizer

# Private-use characters: place holders that a template copies like any other text, for texts put aside here and for
# the answers of `chat_replay`.
_OPEN, _CLOSE = "\ue9f0", "\ue9f1"
REPLY_OPEN, REPLY_CLOSE = "\ue9f2", "\ue9f3"
_PLACE = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_PLACE_CHARACTERS = re.compile(f"[{_OPEN}-{REPLY_CLOSE}]")
# Beside images, an assistant's text must not spell the marker of one.
_BESIDE_VISUALS = re.compile(f"{_PLACE_CHARACTERS.pattern}|{MARKER.pattern}")


def encode_chat(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any
) -> list[int]:
    """Token ids of a rendered conversation. Raises TemplateError as `ChatFormat.render` does."""
    chat = ChatTokens(PieceEncoder(tokenizer, max_bytes=0), chat_format)
    return chat.encode(chat.render(messages, {}, **template_kwargs))


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A rendered conversation. aside: texts that are plain, whatever they spell, and rows of images; the text has place
    holders for them."""

    text: str
    aside: Sequence[str | Rows]


class ChatTokens:
    """A chat format with the tokenizer that its prompts are encoded with. Safe to use from several threads."""

    def __init__(self, pieces: PieceEncoder, chat_format: ChatFormat) -> None:
        self._pieces = pieces
        self._chat_format = chat_format
        tokenizer = pieces.tokenizer
        markers = [re.escape(tokenizer.decode([i], skip_special=False)) for i in sorted(tokenizer.special_ids)]
        self._markers = re.compile("|".join([*filter(None, markers), _PLACE_CHARACTERS.pattern]))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        stand_ins: Mapping[int, Mapping[str, Any]],
        /,
        **template_kwargs: Any,
    ) -> RenderedChat:
        """As `ChatFormat.render`, with what must stay plain put aside.

        stand_ins: what to render in place of messages, by their number; their content goes in as it is.
        """
        aside: list[str | Rows] = []
        safe = []
        visuals = visual_parts(messages)
        for number, message in enumerate(messages):
            stand_in = stand_ins.get(number)
            whole = ("role",) if stand_in is None else ("role", "content")
            own_words = stand_in is None and message.get("role") == "assistant"
            own_pattern = _BESIDE_VISUALS if visuals else _PLACE_CHARACTERS
            pattern = own_pattern if own_words else self._markers
            fields = without_rows(message) if stand_in is None else stand_in
            safe.append({k: v if k in whole else _guarded(v, pattern, aside) for k, v in fields.items()})
        options = {name: _guarded(value, self._markers, aside) for name, value in template_kwargs.items()}
        text = self._chat_format.render(safe, **options)
        if visuals:
            text = write_rows(text, visuals, aside, f"{_OPEN}{{}}{_CLOSE}")
        return RenderedChat(text, aside)

    def encode(self, chat: RenderedChat) -> list[int]:
        """Token ids of a rendered conversation, or of a part of one. Rows of images have ids below zero; see
        `place_frames`."""
        ids: list[int] = []
        for place, piece in enumerate(_PLACE.split(chat.text)):
            if place % 2 and int(piece) < len(chat.aside):
                put_aside = chat.aside[int(piece)]
                if isinstance(put_aside, Rows):
                    ids += put_aside.ids
                else:
                    ids += self._pieces.tokenizer.encode(put_aside, add_bos=False)
            elif place % 2:  # an assistant's text that looks like a place holder
                ids += self._pieces.tokenizer.encode(f"{_OPEN}{piece}{_CLOSE}", add_bos=False)
            elif piece:
                ids += self._pieces.encode(piece)
        return ids


def _guarded(value: Any, pattern: re.Pattern[str], aside: list[str | Rows]) -> Any:
    """A copy in which whatever the pattern finds is put aside."""

    def put_aside(match: re.Match[str]) -> str:
        aside.append(match.group())
        return f"{_OPEN}{len(aside) - 1}{_CLOSE}"

    def guarded(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(put_aside, value)
        if isinstance(value, (list, tuple)):
            return [guarded(item) for item in value]
        if isinstance(value, Mapping):
            return {guarded(key): guarded(item) for key, item in value.items()}
        return value

    return guarded(value)

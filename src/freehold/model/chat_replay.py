"""Conversations that come back become the very tokens that were computed before.

A template writes an answer anew from what a client sends back, and hardly ever as the model had written it: calls are
spaced otherwise, white space and reasoning are missing. The first token that differs makes everything after it unknown
to the block cache. So the tokens of each answer are remembered under a key of the conversation up to it, and put in
place of what the template would write: the tokens of a prompt and of its answer begin the prompt that follows. It also
gives the model its own reasoning back, where the client or the template leaves it out.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from freehold.core.errors import TemplateError
from freehold.model.chat import ChatFormat
from freehold.model.chat_keys import first_key, next_key, reasoning_of
from freehold.model.chat_pieces import PieceEncoder
from freehold.model.chat_tokens import ChatTokens, RenderedChat
from freehold.model.chat_turns import TurnForms, find_turn_forms, reply_place, reply_places
from freehold.model.tokenizer import Tokenizer

_NO_KEY = b""  # of messages that are no JSON data; rendering them says so
_OWN_NAMES = frozenset({"self", "messages", "tools", "add_generation_prompt"})
_MOST_FORMS = 64  # of different options, which clients choose


@dataclass(frozen=True, slots=True)
class Reply:
    """What was sampled for one answer.

    ids: every token, the one that ended it included, if one did. opening: the end of its prompt, which opened its turn.
    """

    ids: array[int]
    opening: str


class ReplyMemory(Protocol):
    """Where answers are kept, under the key of the conversation that ends with them. Safe to use from several
    threads."""

    def remember(self, key: bytes, reply: Reply, reasoning: str) -> None:
        """Keeps an answer; one with the same key and reasoning is replaced."""
        ...

    def recall(self, key: bytes, reasoning: str | None) -> Reply | None:
        """The answer with this reasoning, or with None the latest with any; None if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A prompt. ids: its tokens. key: of the conversation so far. opening: the end of the prompt that opens the
    answer's turn, or None if it could not be told; then the answer cannot be recognised later."""

    ids: list[int]
    key: bytes
    opening: str | None


class ChatEncoder:
    """Conversations to tokens. Safe to use from several threads.

    replies: a memory of answers; None: every message is rendered as the client sends it.
    piece_bytes: most bytes of RAM for pieces of text whose tokens are remembered.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        replies: ReplyMemory | None = None,
        *,
        piece_bytes: int = 32 << 20,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_format = chat_format
        self._replies = replies
        self._tokens = ChatTokens(PieceEncoder(tokenizer, max_bytes=piece_bytes), chat_format)
        self._forms: OrderedDict[bytes, TurnForms | None] = OrderedDict()
        self._lock = threading.Lock()
        ends = {tokenizer.decode([i], skip_special=False): i for i in sorted(tokenizer.eos_ids)}
        self._ends = {text: token_id for text, token_id in ends.items() if text}
        self._end_of_turn = re.compile("|".join(map(re.escape, sorted(self._ends, key=len, reverse=True))) or r"(?!)")

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        scope: str = "",
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> EncodedChat:
        """The prompt of a conversation. Messages that this engine sampled become the tokens it sampled.

        scope: whose conversation it is; answers to others are never used for it.
        template_kwargs: further variables of the template. Raises TemplateError as `ChatFormat.render` does.
        """
        options = dict(template_kwargs or {})
        for name in sorted(_OWN_NAMES & options.keys()):
            raise TemplateError(f"{name!r} is not an option of a chat template")
        keys = self._keys(messages, tools, scope, options)
        forms = self._forms_for(options) if keys else None
        given = {"tools": tools, "add_generation_prompt": add_generation_prompt, **options}
        replies = self._recognise(messages, keys, forms) if forms else {}
        prompt = self._replay(messages, replies, forms, given) if forms and replies else None
        if prompt is None:
            chat = self._tokens.render(messages, {}, **given)
            prompt = self._tokens.encode(chat), chat.text
        ids, text = prompt
        opening = forms.openings.get("tool" if messages[-1]["role"] == "tool" else "user") if forms else None
        known = add_generation_prompt and opening is not None and text.endswith(opening)
        return EncodedChat(ids, keys[-1] if keys else _NO_KEY, opening if known else None)

    def remember(self, chat: EncodedChat, message: Mapping[str, Any], ids: Sequence[int]) -> None:
        """Keeps an answer to `chat` for the day it comes back.

        message: the answer as the client gets it: content, reasoning_content, tool_calls. ids: every sampled token.
        Nothing is kept of an answer without tokens, nor if `chat` has no key or no opening.
        """
        if self._replies is None or not ids or chat.opening is None or not chat.key:
            return
        key = next_key(chat.key, {**message, "role": "assistant"})
        self._replies.remember(key, Reply(array("i", ids), chat.opening), reasoning_of(message) or "")

    @cached_property
    def _identity(self) -> bytes:
        return first_key(self._tokenizer.digest().encode()[:64], self._chat_format.template or "", None, {})

    def _keys(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        scope: str,
        options: Mapping[str, Any],
    ) -> list[bytes]:
        """The key after each message; none at all without a memory, and for what cannot be rendered anyway."""
        if self._replies is None or not self._chat_format.available or not messages:
            return []
        keys = [b""]
        try:
            keys[0] = first_key(self._identity, scope, tools, options)
            for message in messages:
                keys.append(next_key(keys[-1], message))
        except (AttributeError, TypeError, ValueError, RecursionError):
            return []
        return keys[1:]

    def _forms_for(self, options: Mapping[str, Any]) -> TurnForms | None:
        key = first_key(b"", "", None, {"options": [options]})
        with self._lock:
            if key in self._forms:
                self._forms.move_to_end(key)
                return self._forms[key]
        forms = find_turn_forms(self._chat_format, self._end_of_turn, options)
        with self._lock:
            self._forms[key] = forms
            while len(self._forms) > _MOST_FORMS:
                self._forms.popitem(last=False)
        return forms

    def _recognise(
        self, messages: Sequence[Mapping[str, Any]], keys: Sequence[bytes], forms: TurnForms
    ) -> dict[int, Reply]:
        """What was sampled for messages, by their number."""
        assert self._replies is not None
        found = {}
        for number, (message, key) in enumerate(zip(messages, keys, strict=True)):
            if message.get("role") != "assistant" or (message.get("tool_calls") and not forms.call_leads):
                continue
            reply = self._replies.recall(key, reasoning_of(message))
            if reply is not None:
                found[number] = reply
        return found

    def _replay(
        self,
        messages: Sequence[Mapping[str, Any]],
        replies: Mapping[int, Reply],
        forms: TurnForms,
        given: Mapping[str, Any],
    ) -> tuple[list[int], str] | None:
        """The prompt with sampled tokens in it, and as the template wrote it. None if the template has written a turn
        unlike those it was tried with, so that nothing can be put in its place."""
        stand_ins = {n: _stand_in(messages[n], place) for place, n in enumerate(replies)}
        try:
            chat = self._tokens.render(messages, stand_ins, **given)
        except TemplateError:
            return None  # if it was not the stand-ins that it refused, it will refuse again
        places = reply_places(chat.text, len(replies))
        if places is None:
            return None
        ids: list[int] = []
        done = 0
        limits = [*(start for start, _ in places[1:]), len(chat.text)]
        for (number, reply), (start, stop), limit in zip(replies.items(), places, limits, strict=True):
            leads = forms.call_leads if messages[number].get("tool_calls") else forms.leads
            begin = next((start - len(lead) for lead in leads if chat.text.endswith(lead, done, start)), None)
            end = self._end_of_turn.search(chat.text, stop, limit)
            if begin is None or end is None:
                return None
            ids += self._tokens.encode(RenderedChat(chat.text[done:begin] + reply.opening, chat.aside))
            ids += self._whole(reply.ids, self._ends[end.group()])
            done = end.end()
        return ids + self._tokens.encode(RenderedChat(chat.text[done:], chat.aside)), chat.text

    def _whole(self, ids: array[int], end_of_turn: int) -> list[int]:
        """An answer's tokens with the template's end of turn: added if the answer broke off, or put in the place of
        another token that ends answers. That one was sampled but never read, so no computed block has it."""
        sampled = ids.tolist()
        if sampled[-1] in self._tokenizer.eos_ids:
            sampled.pop()
        return [*sampled, end_of_turn]


def _stand_in(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A place holder for an answer. Templates look at calls to tell whose result a tool's message is; arguments are
    of no use to them, and those of an answer that broke off are no JSON."""
    answer: dict[str, Any] = {"role": "assistant", "content": reply_place(place)}
    calls = []
    for call in message.get("tool_calls") or ():
        function = {"name": call.get("function", call).get("name"), "arguments": {}}
        own_id = {"id": call["id"]} if "id" in call else {}
        calls.append({**own_id, "type": "function", "function": function})
    if calls:
        answer["tool_calls"] = calls
    return answer

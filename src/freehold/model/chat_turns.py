"""How a chat template writes an answer's turn, found by rendering small conversations with place holders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.core.errors import TemplateError
from freehold.model.chat import ChatFormat
from freehold.model.chat_tokens import REPLY_CLOSE, REPLY_OPEN

_REPLY = re.compile(f"{REPLY_OPEN}([0-9]{{1,9}}){REPLY_CLOSE}")
_CALL_ID = "call00000"  # nine letters and digits, as some templates demand

# Answers in every place that templates tell apart: old, the last, before and after calls.
_SHAPES = (
    ("user", "answer", "user"),
    ("user", "answer"),
    ("user", "call", "tool", "user"),
    ("user", "call", "tool"),
    ("user", "call", "tool", "answer", "user"),
    ("user", "call", "tool", "answer"),
    ("user", "call", "tool", "call", "tool"),
)


def reply_place(number: int) -> str:
    """The place holder of an answer."""
    return f"{REPLY_OPEN}{number}{REPLY_CLOSE}"


def reply_places(text: str, count: int) -> list[tuple[int, int]] | None:
    """Where the place holders 0 to count - 1 stand, as (start, end); None unless they are there once each, in order."""
    found = list(_REPLY.finditer(text))
    if [int(match.group(1)) for match in found] != list(range(count)):
        return None
    return [match.span() for match in found]


@dataclass(frozen=True, slots=True)
class TurnForms:
    """What a template writes around answers.

    openings: role of the message before -> what opens the turn of an answer that is to be written. The roles are
        "user" and "tool"; one is missing where it could not be found out.
    leads: what may stand between the end of the message before and the content of an answer without calls, longest
        first.
    call_leads: the same of an answer with calls; empty if the template writes no content beside calls.
    """

    openings: Mapping[str, str]
    leads: Sequence[str]
    call_leads: Sequence[str]


def find_turn_forms(
    chat_format: ChatFormat, end_of_turn: re.Pattern[str], template_kwargs: Mapping[str, Any]
) -> TurnForms | None:
    """The forms under some options of the template; None if they cannot be told.

    end_of_turn: finds the texts of the tokens that end an answer.
    """
    closings: dict[str, str] = {}
    openings: dict[str, str] = {}
    for before in (("user",), ("user", "call", "tool")):
        closed = _after_last(_render(chat_format, before, template_kwargs, opened=False), len(before))
        opened = _after_last(_render(chat_format, before, template_kwargs, opened=True), len(before))
        if closed is not None and opened is not None and opened.startswith(closed):
            closings[before[-1]] = closed
            openings[before[-1]] = opened.removeprefix(closed)
    leads: dict[str, set[str]] = {"answer": set(), "call": set()}
    for shape in _SHAPES:
        text = _render(chat_format, shape, template_kwargs, opened=False)
        for kind, lead in _leads(text, shape, closings, end_of_turn):
            leads[kind].add(lead)
    if not openings or not leads["answer"]:
        return None
    return TurnForms(openings, _longest_first(leads["answer"]), _longest_first(leads["call"]))


def _render(
    chat_format: ChatFormat, shape: Sequence[str], template_kwargs: Mapping[str, Any], *, opened: bool
) -> str | None:
    messages = [_message(kind, reply_place(number)) for number, kind in enumerate(shape)]
    try:
        return chat_format.render(messages, add_generation_prompt=opened, **template_kwargs)
    except TemplateError:
        return None  # no tools, say; a template that refuses everything says so when it is used


def _message(kind: str, content: str) -> dict[str, Any]:
    if kind == "call":
        function = {"name": "probe", "arguments": {}}
        calls = [{"id": _CALL_ID, "type": "function", "function": function}]
        return {"role": "assistant", "content": content, "tool_calls": calls}
    if kind == "tool":
        return {"role": "tool", "content": content, "tool_call_id": _CALL_ID, "name": "probe"}
    return {"role": "assistant" if kind == "answer" else kind, "content": content}


def _after_last(text: str | None, count: int) -> str | None:
    places = None if text is None else reply_places(text, count)
    return None if text is None or not places else text[places[-1][1] :]


def _leads(
    text: str | None, shape: Sequence[str], closings: Mapping[str, str], end_of_turn: re.Pattern[str]
) -> list[tuple[str, str]]:
    """(kind, lead) of each answer of a rendered shape whose turn ends before the next message."""
    places = None if text is None else reply_places(text, len(shape))
    if text is None or places is None:
        return []
    found = []
    for number, kind in enumerate(shape):
        if kind not in ("answer", "call") or shape[number - 1] not in closings:
            continue
        closing = closings[shape[number - 1]]
        between = text[places[number - 1][1] : places[number][0]]
        stop = places[number + 1][0] if number + 1 < len(shape) else len(text)
        if between.startswith(closing) and end_of_turn.search(text, places[number][1], stop):
            found.append((kind, between.removeprefix(closing)))
    return found


def _longest_first(texts: set[str]) -> list[str]:
    return sorted(texts, key=lambda text: (-len(text), text))

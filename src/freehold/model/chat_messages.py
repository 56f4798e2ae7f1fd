"""Bringing a conversation into the form that chat templates are written for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from freehold.core.errors import TemplateError

BROKEN_ARGUMENTS = "broken_arguments"
"""What stands in a prompt for arguments that are no JSON object; their text is its value."""


def plain(value: Any, where: str) -> Any:
    """A copy of JSON-like data with nothing but dict, list, str, int, float, bool and None in it.

    Raises TemplateError naming the place of anything else: templates must not meet objects with methods.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TemplateError(f"{where} has the key {key!r}; keys must be texts")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TemplateError(f"{where} is a {type(value).__name__}; only JSON data can go into a chat template")


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checked copies of messages, each a mapping with a `role`; tool-call arguments become objects.

    Templates walk through `function.arguments`, while the OpenAI API sends them as a text of JSON.
    """
    copies: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        copy = plain(message, where)
        if not isinstance(copy, dict) or not isinstance(copy.get("role"), str):
            raise TemplateError(f"{where} has no role; each message must be an object with a role")
        for number, call in enumerate(copy.get("tool_calls") or ()):
            _parse_arguments(call, f"{where}.tool_calls[{number}]")
        copies.append(copy)
    return copies


def _parse_arguments(call: Any, where: str) -> None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise TemplateError(f"{where} is not a tool call; it must be an object with a function")
    function["arguments"] = called_arguments(function.get("arguments"))


def called_arguments(arguments: Any) -> dict[str, Any]:
    """A call's arguments as the object that templates walk through.

    A model may have broken off in them, or written something else: that is kept as an argument of its own, so that
    the model sees what it wrote and the session goes on.
    """
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            value = None
    return value if isinstance(value, dict) else {BROKEN_ARGUMENTS: arguments}


def join_text_parts(messages: list[dict[str, Any]]) -> None:
    """Turns content lists into texts, parts joined by line ends, for templates that know no lists.

    Raises TemplateError for a part that is not text.
    """
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        texts: list[str] = []
        for number, part in enumerate(content):
            where = f"messages[{index}].content[{number}]"
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise TemplateError(f"{where} is of type {kind!r}; this model's chat template takes text only")
        message["content"] = "\n".join(texts)


def split_into_parts(messages: list[dict[str, Any]]) -> None:
    """Turns text content into a list of one text part, for templates that know nothing but lists."""
    for message in messages:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]

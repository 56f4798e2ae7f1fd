"""Recognising a conversation: one key for all that was said up to a message, whatever a client did to its spelling.

Clients send history back as their own libraries store it: JSON spaced anew and its keys reordered, 1.0 as 1, text
trimmed, ids and empty fields dropped. None of that changes a key. What changes the meaning does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

# JavaScript's `trim` takes a byte order mark for white space, Python's `strip` does not.
_SPACE = "\ufeff"
# A template's option that is no longer than this chooses between ways to write; a longer one is something to read.
_LONGEST_SWITCH = 32


def first_key(identity: bytes, scope: str, tools: Sequence[Any] | None, template_kwargs: Mapping[str, Any]) -> bytes:
    """The key of a conversation in which nothing was said yet.

    identity: whatever makes answers those of one model. scope: whose conversation it is; keys of two scopes never
    meet. Options that are mere switches, as those of a thinking mode, make no difference.
    Raises TypeError or ValueError for what is no JSON data.
    """
    options = {name: value for name, value in template_kwargs.items() if not _is_switch(value)}
    return _digest(identity, _dump([scope, list(tools or ()), options]))


def next_key(key: bytes, message: Mapping[str, Any]) -> bytes:
    """The key of a conversation with one message more. Raises TypeError or ValueError for what is no JSON data."""
    role = message.get("role")
    if role == "assistant":
        calls = [_call(call) for call in message.get("tool_calls") or ()]
        said = [role, _trimmed("".join(_texts(message.get("content")))), calls]
    else:
        name = message.get("name") if role != "tool" else None
        said = [role, _content(message.get("content")), name or ""]
    return _digest(key, _dump(said))


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """An assistant message's reasoning, trimmed; None if it has none, or an empty one."""
    for name in ("reasoning_content", "reasoning"):
        text = message.get(name)
        if isinstance(text, str) and _trimmed(text):
            return _trimmed(text)
    return None


def _is_switch(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_SWITCH
    return value is None or isinstance(value, (bool, int, float))


def _texts(content: Any) -> list[str]:
    """The texts of an assistant's content; a part that is none stands as JSON."""
    if content is None or isinstance(content, str):
        return [content or ""]
    parts = content if isinstance(content, Sequence) else [content]
    return [_text(part) if _is_text(part) else "\0" + _dump(part) for part in parts]


def _content(content: Any) -> Any:
    """Content of a user or a tool, without the marks that clients move from message to message, as of caching."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_text(part) if _is_text(part) else [part] for part in content]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _text(part: Any) -> str:
    return part if isinstance(part, str) else str(part["text"])


def _trimmed(text: str) -> str:
    trimmed = text.strip().strip(_SPACE)
    return trimmed if trimmed == text else _trimmed(trimmed)


def _call(call: Any) -> list[str]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        return [str(function.get("name")), "{}"]
    text = arguments if isinstance(arguments, str) else _dump(arguments)
    try:
        return [str(function.get("name")), _dump(json.loads(text, parse_float=_number, parse_int=_number))]
    except (ValueError, RecursionError):
        return [str(function.get("name")), "\0" + _trimmed(text)]  # an answer that broke off inside a call


def _number(digits: str) -> float | str:
    """A number as JavaScript knows it; one beyond that as its digits."""
    number = float(digits) + 0.0  # no minus before a zero
    return number if math.isfinite(number) else digits


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON data")


def _digest(key: bytes, said: str) -> bytes:
    return hashlib.blake2b(said.encode("ascii"), digest_size=32, key=key).digest()

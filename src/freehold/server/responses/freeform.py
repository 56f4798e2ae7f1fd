"""Custom tools, whose input is free text: to the model they are functions with one string argument."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

FREEFORM_ARGUMENT = "input"
"""The name of that argument."""

_HEAD = re.compile(r'[ \t\r\n]*\{[ \t\r\n]*"input"[ \t\r\n]*:[ \t\r\n]*"')
_SPACE = re.compile(r"[ \t\r\n]+")
_PLAIN_HEAD = '{"input":"'
_WHOLE = re.compile(r'(?:[^"\\]+|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_OPEN_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")


def freeform_arguments(text: str) -> str:
    """The arguments of the function that stands for a custom tool."""
    return json.dumps({FREEFORM_ARGUMENT: text}, ensure_ascii=False)


def freeform_parameters(hint: str) -> dict[str, Any]:
    """The schema of that function's parameters. hint: what the text is."""
    return {
        "type": "object",
        "properties": {FREEFORM_ARGUMENT: {"type": "string", "description": hint}},
        "required": [FREEFORM_ARGUMENT],
        "additionalProperties": False,
    }


class FreeformInput:
    """Reads the text out of a call's arguments while they come.

    Arguments `{"input": "..."}` give their text piece by piece. Arguments of any other form, which a model that nothing
    holds to the schema may write, give one piece at the end: the string `input`, or the only string there is, or else
    the arguments as they are.
    """

    def __init__(self) -> None:
        self.text = ""
        self._state: Literal["head", "string", "done", "other"] = "head"
        self._held = ""

    def feed(self, json_piece: str) -> str:
        """What became certain of the text; often nothing."""
        if self._state == "done":
            return ""
        self._held += json_piece
        if self._state == "head":
            self._read_head()
        return self._keep(self._read_string()) if self._state == "string" else ""

    def end(self) -> str:
        """The rest of the text; to be called once, when the call has ended or broken off."""
        if self._state == "other" or (self._state == "head" and not _begins_head(self._held)):
            return self._keep(_only_text(self._held))
        return ""

    def _keep(self, piece: str) -> str:
        self.text += piece
        return piece

    def _read_head(self) -> None:
        if found := _HEAD.match(self._held):
            self._state, self._held = "string", self._held[found.end() :]
        elif not _begins_head(self._held):
            self._state = "other"

    def _read_string(self) -> str:
        found = _WHOLE.match(self._held)
        assert found is not None  # it matches anywhere
        end = found.end()
        if end < len(self._held) and self._held[end] == '"':
            self._state = "done"
        elif half := _OPEN_SURROGATE.search(self._held[:end]):
            end = half.start()
        piece, self._held = self._held[:end], self._held[end:]
        # A half of a pair that stands alone cannot be sent.
        decoded = str(json.loads(f'"{piece}"', strict=False))
        return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _begins_head(text: str) -> bool:
    plain = _SPACE.sub("", text)
    return plain != _PLAIN_HEAD and _PLAIN_HEAD.startswith(plain)


def _only_text(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if isinstance(value.get(FREEFORM_ARGUMENT), str):
            return str(value[FREEFORM_ARGUMENT])
        if len(value) == 1 and isinstance(only := next(iter(value.values())), str):
            return only
    return arguments

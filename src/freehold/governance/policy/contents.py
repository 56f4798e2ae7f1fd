"""Everything in a request's body that says something, in whichever API's form it is written.

No field is passed over because it is not expected: all strings, keys and numbers of the body are read, those in tool
definitions, in arguments and results, and in JSON that is written inside a string. What cannot be read as text (images,
files, token ids, references to what an upstream keeps) is named by its kind.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

SEPARATOR = "\x00"
"""Between texts that stand apart; nothing is found across it."""

STRUCTURE_KINDS = ("system-prompt", "image", "file", "tokens", "reference", "sealed", "hosted-tool")

JOINT_CHARS = 256
"""So much of each side is looked at where two texts meet."""

_NESTED_JSON = 3
_CONTENT_KEYS = frozenset({"content", "input", "output", "system", "messages", "summary"})
# Words of the API itself, which would come between two halves of a text.
_NOT_CONTENT = frozenset(
    {"role", "type", "id", "tool_call_id", "tool_use_id", "call_id", "status", "detail", "media_type", "name"}
)
_TEXT_PARTS = frozenset(
    """text input_text output_text summary_text reasoning_text refusal message reasoning thinking redacted_thinking
    tool_use tool_result function_call function_call_output custom_tool_call custom_tool_call_output search_result
    server_tool_use web_search_tool_result web_search_result code_execution_result local_shell_call
    local_shell_call_output shell_call shell_call_output apply_patch_call apply_patch_call_output web_search_call
    tool_reference""".split()
)
_CLIENT_TOOLS = ("bash_", "text_editor_", "computer", "memory_", "local_shell", "shell", "apply_patch")
_REFERENCE_KEYS = frozenset({"file_id", "previous_response_id", "conversation", "container", "vector_store_ids"})
_SEALED_KEYS = frozenset({"encrypted_content", "signature"})
_HOSTED_KEYS = frozenset({"mcp_servers", "web_search_options", "plugins"})
_DATA_URL = re.compile(r"data:(image|video|audio|application)/", re.I)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a body holds.

    text: all strings, keys and numbers, in order, with SEPARATOR between them.
    joints: what arises where neighbouring texts are read as one, also those of one role across the others'.
    kinds: how many of each of STRUCTURE_KINDS.
    """

    text: str
    joints: str
    kinds: Mapping[str, int]


def contents(body: Any, extra: Sequence[str] = ()) -> Contents:
    """Read a JSON value. extra: further texts that would leave with it, such as headers."""
    reader = _Reader()
    if isinstance(body, Mapping):
        reader.read_body(body)
    else:
        reader.read(body, "", "")
    flows = [reader.flow, *(reader.flows.values() if len(reader.flows) > 1 else ())]
    joints = SEPARATOR.join(_joined(flow) for flow in flows)
    kinds = {kind: count for kind, count in reader.kinds.items() if count}
    return Contents(SEPARATOR.join([*reader.texts, *extra]), joints, kinds)


def _joined(flow: Sequence[str]) -> str:
    """Texts put together without anything between; of long ones the ends only.

    Where a word or number runs on into what stands before or after, two or three of them are also put together alone:
    a number that is split over two texts would otherwise be lost in a third one's.
    """
    if len(flow) < 2:
        return ""
    ends = [
        text if len(text) <= 2 * JOINT_CHARS else f"{text[:JOINT_CHARS]}{SEPARATOR}{text[-JOINT_CHARS:]}"
        for text in flow
    ]
    runs_on = [before[-1].isalnum() and after[0].isalnum() for before, after in pairwise(ends)]
    alone = []
    for count in (2, 3):
        for first in range(len(ends) - count + 1):
            before = first > 0 and runs_on[first - 1]
            after = first + count < len(ends) and runs_on[first + count - 1]
            if before or after:
                alone.append("".join(ends[first : first + count]))
    return SEPARATOR.join(["".join(ends), *alone])


@dataclass(slots=True)
class _Reader:
    texts: list[str] = field(default_factory=list)
    flow: list[str] = field(default_factory=list)
    flows: dict[str, list[str]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def read_body(self, body: Mapping[str, Any]) -> None:
        for key, value in body.items():
            if value and key in ("system", "instructions"):
                self.kinds["system-prompt"] += 1
            if value and key in _HOSTED_KEYS:
                self.kinds["hosted-tool"] += 1
            if key == "tools" and isinstance(value, list):
                self.kinds["hosted-tool"] += sum(map(_is_hosted, value))
            if key == "prompt" and isinstance(value, Mapping):
                self.kinds["reference"] += 1  # a prompt that the upstream keeps
            if key in ("prompt", "input") and _has_numbers(value):
                self.kinds["tokens"] += 1
        self.read(body, "", "")

    def read(self, value: Any, key: str, role: str, nested: int = 0) -> None:
        if isinstance(value, str):
            self._read_text(value, key, role, nested)
        elif isinstance(value, Mapping):
            self._read_object(value, key, role, nested)
        elif isinstance(value, list):
            for item in value:
                if key in _CONTENT_KEYS and isinstance(item, Mapping):
                    self._read_part(item)
                self.read(item, key, role, nested)
        elif value is not None and not isinstance(value, bool):
            self.texts.append(str(value))

    def _read_object(self, value: Mapping[str, Any], key: str, role: str, nested: int) -> None:
        own = value.get("role")
        if isinstance(own, str):
            role = own
            if own in ("system", "developer"):
                self.kinds["system-prompt"] += 1
        for name, member in value.items():
            self.texts.append(name.replace(SEPARATOR, "\x01"))
            if member and name in _REFERENCE_KEYS:
                self.kinds["reference"] += 1
            if member and name in _SEALED_KEYS:
                self.kinds["sealed"] += 1
            if member and name in ("image_url", "video_url"):
                self.kinds["image"] += 1
            self.read(member, name, role, nested)

    def _read_part(self, part: Mapping[str, Any]) -> None:
        """An element of a list of messages, items or parts: what kind it is of."""
        kind = part.get("type")
        if kind is None or not isinstance(kind, str):
            return
        if kind == "redacted_thinking":
            self.kinds["sealed"] += 1
        elif kind == "item_reference":
            self.kinds["reference"] += 1
        elif "image" in kind or "video" in kind or kind == "computer_call_output":
            self.kinds["image"] += 1
        elif kind not in _TEXT_PARTS and not _is_text_document(part):
            self.kinds["file"] += 1

    def _read_text(self, text: str, key: str, role: str, nested: int) -> None:
        # What a text holds of the sign that stands between texts is a control like others.
        text = text.replace(SEPARATOR, "\x01")
        self.texts.append(text)
        if key not in _NOT_CONTENT and text:
            self.flow.append(text)
            self.flows.setdefault(role, []).append(text)
        for found in _DATA_URL.finditer(text):
            self.kinds["image" if found[1].lower() in ("image", "video") else "file"] += 1
        if nested < _NESTED_JSON and text.lstrip()[:1] in ("{", "[", '"'):
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                return
            if inner != text:
                self.read(inner, "", role, nested + 1)


def _is_text_document(part: Mapping[str, Any]) -> bool:
    source = part.get("source")
    return part.get("type") == "document" and isinstance(source, Mapping) and source.get("type") in ("text", "content")


def _is_hosted(tool: Any) -> bool:
    """Whether the upstream itself would run a tool, and so tell others what is in the request."""
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind is None or kind in ("function", "custom", "namespace"):
        return not isinstance(tool, Mapping)
    return not (isinstance(kind, str) and kind.startswith(_CLIENT_TOOLS))


def _has_numbers(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return any(
        (isinstance(item, int) and not isinstance(item, bool)) or (isinstance(item, list) and _has_numbers(item))
        for item in value
    )

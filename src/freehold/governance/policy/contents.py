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

from freehold.governance.policy.shape import KNOWN_NAMES, kinds_of

SEPARATOR = "\x00"
"""Between texts that stand apart; nothing is found across it."""

STRUCTURE_KINDS = (
    "system-prompt", "image", "file", "tokens", "reference", "sealed", "hosted-tool", "stored", "unknown-field",
)  # fmt: skip

JOINT_CHARS = 256
"""So much of each side is looked at where two texts meet."""

_NESTED_JSON = 3
# Words of the API itself, which would come between two halves of a text.
_NOT_CONTENT = frozenset(
    {"role", "type", "id", "tool_call_id", "tool_use_id", "call_id", "status", "detail", "media_type", "name"}
)
_API_WORD = re.compile(r"[a-z_]{1,40}")
_GROUP_CHARS = 24
_REFERENCE_KEYS = frozenset(
    {"file_id", "file_ids", "previous_response_id", "conversation", "container", "container_id", "vector_store_ids"}
)
_SEALED_KEYS = frozenset({"encrypted_content", "signature"})
_DATA_URL = re.compile(r"data:(image|video|audio|application)/", re.I)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a body holds.

    text: all strings, keys and numbers, in order, with SEPARATOR between them.
    joints: what arises where neighbouring texts are read as one: all, those of one role, those that stand at the same
        place of neighbouring objects, and names of members.
    paths: neighbouring texts with a slash between them.
    kinds: how many of each of STRUCTURE_KINDS.
    """

    text: str
    joints: str
    paths: str
    kinds: Mapping[str, int]


def contents(body: Any, extra: Sequence[str] = ()) -> Contents:
    """Read a JSON value. extra: further texts that would leave with it, such as headers."""
    reader = _Reader()
    reader.read(body, "", "", "")
    for text in extra:
        reader.read(text, "", "headers", "headers")
    if isinstance(body, Mapping):
        reader.kinds += kinds_of(body)
    joints = dict.fromkeys(_joined(flow) for flow in (reader.flow, *reader.flows.values(), reader.names))
    groups = [",".join(flow) for flow in reader.flows.values() if len(flow) > 1 and _are_short(flow)]
    kinds = {kind: count for kind, count in reader.kinds.items() if count}
    paths = "/".join(map(_ends, reader.flow)) if len(reader.flow) > 1 else ""
    return Contents(SEPARATOR.join(reader.texts), SEPARATOR.join(filter(None, (*joints, *groups))), paths, kinds)


def _are_short(flow: Sequence[str]) -> bool:
    """Whether they may be the groups of one number."""
    return all(len(text) <= _GROUP_CHARS for text in flow) and any(text[:1].isdigit() for text in flow)


def _ends(text: str) -> str:
    return text if len(text) <= 2 * JOINT_CHARS else f"{text[:JOINT_CHARS]}{SEPARATOR}{text[-JOINT_CHARS:]}"


def _joined(flow: Sequence[str]) -> str:
    """Texts put together without anything between; of long ones the ends only.

    Where a word or number runs on into what stands before or after, two or three of them are also put together alone:
    a number that is split over two texts would otherwise be lost in a third one's.
    """
    if len(flow) < 2:
        return ""
    ends = [_ends(text) for text in flow]
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
    """Reads in document order. flows: by role, and by the place in the body without the numbers of list elements."""

    texts: list[str] = field(default_factory=list)
    flow: list[str] = field(default_factory=list)
    flows: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def read(self, value: Any, key: str, where: str, role: str, nested: int = 0) -> None:
        if isinstance(value, str):
            self._read_text(value, key, where, role, nested)
        elif isinstance(value, Mapping):
            self._read_object(value, where, role, nested)
        elif isinstance(value, list):
            for item in value:
                self.read(item, key, where, role, nested)
        elif value is not None and not isinstance(value, bool):
            self._note(str(value), key, where, role)

    def _read_object(self, value: Mapping[str, Any], where: str, role: str, nested: int) -> None:
        own = value.get("role")
        if isinstance(own, str):
            role = own
        for name, member in value.items():
            written = name.replace(SEPARATOR, "\x01")
            self.texts.append(written)
            if name and name not in KNOWN_NAMES:
                self.names.append(written)
            if member and name in _REFERENCE_KEYS:
                self.kinds["reference"] += 1
            if member and name in _SEALED_KEYS:
                self.kinds["sealed"] += 1
            if member and name in ("image_url", "video_url"):
                self.kinds["image"] += 1
            self.read(member, name, f"{where}/{name}", role, nested)

    def _note(self, text: str, key: str, where: str, role: str) -> None:
        self.texts.append(text)
        if not text or (key in _NOT_CONTENT and _API_WORD.fullmatch(text)):
            return
        self.flows.setdefault(("where", where), []).append(text)
        if key not in _NOT_CONTENT:
            self.flow.append(text)
            self.flows.setdefault(("role", role), []).append(text)

    def _read_text(self, text: str, key: str, where: str, role: str, nested: int) -> None:
        # What a text holds of the sign that stands between texts is a control like others.
        text = text.replace(SEPARATOR, "\x01")
        self._note(text, key, where, role)
        for found in _DATA_URL.finditer(text):
            self.kinds["image" if found[1].lower() in ("image", "video") else "file"] += 1
        if nested < _NESTED_JSON and text.lstrip()[:1] in ("{", "[", '"'):
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                return
            if inner != text:
                self.read(inner, "", f"{where}/", role, nested + 1)

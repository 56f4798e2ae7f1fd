"""Images and videos in requests, as parts of a conversation; see `freehold.model.chat_visuals`.

Here only their form is looked at: whether the model sees, and what the data are, turns out when the chat is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freehold.server.wire import refusal, shown

KINDS = {"image_url": "image", "video_url": "video"}
_DETAILS = (None, "auto", "high")


def url_part(part: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A part of OpenAI's chat API, `{"type": "image_url", "image_url": {"url": ...}}`, or the same of a video.

    `detail` may be "auto" or "high": models see every image as large as they can. Raises the wire's own refusal.
    """
    name = str(part["type"])
    for other in part:
        if other not in ("type", name):
            raise refusal("unknown", f"unknown field {shown(other)}", f"[{index}].{other[:80]}")
    source = part.get(name)
    if not isinstance(source, dict) or not isinstance(source.get("url"), str):
        raise refusal("value", f"content part {index} has no object {name!r} with a string 'url'", f"[{index}].{name}")
    for other in source:
        if other not in ("url", "detail"):
            raise refusal("unknown", f"unknown field {shown(other)}", f"[{index}].{name}.{other[:80]}")
    check_detail(source.get("detail"), f"[{index}].{name}.detail")
    return {"type": KINDS[name], KINDS[name]: source["url"]}


def check_detail(detail: Any, field: str) -> None:
    """Raises the wire's own refusal for an image that is to be seen smaller than the model would see it."""
    if detail not in _DETAILS:
        raise refusal("unsupported", f"{shown(detail)} is not supported; send 'auto', or a smaller image", field)


def placed_parts(content: Any, where: str) -> Any:
    """The content of a message whose parts know their place in the request: `where[0]`, `where[1]` and so on."""
    if not isinstance(content, list):
        return content
    return [
        part if part["type"] == "text" else {**part, "where": f"{where}[{index}]"} for index, part in enumerate(content)
    ]


def joined(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text, if the parts are nothing but texts."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return list(parts)

"""Answers that pass through, read along: which model wrote them, what they used, and where one event ends.

Nothing is changed and nothing held back. An answer that is compressed, or too long to keep, is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from freehold.governance.policy.record import ReturnedUsage

_MOST_KEPT = 16 * 2**20
_MOST_LINE = 4 * 2**20


class AnswerReader:
    """Reads one answer. streamed: it consists of events."""

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed
        self.model: str | None = None
        self.usage: ReturnedUsage | None = None
        self.nbytes = 0
        self.events = 0
        self.complete = False
        self._rest = bytearray()
        self._skips = False
        self._end = b"\n\n"

    @property
    def between_events(self) -> bool:
        """Whether another event may follow here."""
        return self._end.endswith((b"\n\n", b"\r\n\r\n"))

    def feed(self, data: bytes) -> None:
        """More bytes passed."""
        self.nbytes += len(data)
        if self.streamed:
            self._end = (self._end + data)[-4:]
            self._feed_lines(data)
        elif len(self._rest) + len(data) <= _MOST_KEPT:
            self._rest += data
        else:
            self._skips = True

    def end(self) -> None:
        """The answer is whole."""
        if not self.streamed and not self._skips:
            self._read(bytes(self._rest))
            self.complete = True

    def _feed_lines(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._rest) + line if self._rest else line
            self._rest.clear()
            if not self._skips:
                self._read_line(whole)
            self._skips = False
        if not self._skips and len(self._rest) + len(rest) <= _MOST_LINE:
            self._rest += rest
        else:
            self._rest.clear()
            self._skips = True

    def _read_line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        self.events += 1
        data = line[5:].strip()
        if data == b"[DONE]" or b'"message_stop"' in data or b'"response.completed"' in data:
            self.complete = True
        if self.model is None or b'"usage"' in data:
            self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        # Anthropic's first event and those of Responses hold the message inside.
        for holder in (value, value.get("message"), value.get("response")) if isinstance(value, dict) else ():
            if not isinstance(holder, dict):
                continue
            if isinstance(holder.get("model"), str):
                self.model = holder["model"]
            usage = holder.get("usage")
            if isinstance(usage, dict):
                self.usage = _merged(self.usage, usage)
            elif set(holder) == {"input_tokens"}:  # of count_tokens
                self.usage = _merged(self.usage, holder)


def _merged(before: ReturnedUsage | None, usage: Mapping[str, Any]) -> ReturnedUsage:
    """Later counts replace earlier ones; what is not told again stays."""
    new = _usage(usage)
    if before is None:
        return new
    names = ReturnedUsage.__dataclass_fields__
    return ReturnedUsage(**{n: getattr(before, n) if getattr(new, n) is None else getattr(new, n) for n in names})


def _usage(usage: Mapping[str, Any]) -> ReturnedUsage:
    if "prompt_tokens" in usage:
        return ReturnedUsage(
            input_tokens=_count(usage, "prompt_tokens"),
            cached_tokens=_count(usage.get("prompt_tokens_details"), "cached_tokens"),
            output_tokens=_count(usage, "completion_tokens"),
            reasoning_tokens=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
        )
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    total = _count(usage, "input_tokens")
    if total is not None:
        # Anthropic counts what the cache had apart; OpenAI's Responses have no such members.
        total += (read or 0) + (written or 0)
    details = usage.get("output_tokens_details")
    thinking = _count(details, "thinking_tokens")
    return ReturnedUsage(
        input_tokens=total,
        cached_tokens=read if read is not None else _count(usage.get("input_tokens_details"), "cached_tokens"),
        cache_write_tokens=written,
        output_tokens=_count(usage, "output_tokens"),
        reasoning_tokens=thinking if thinking is not None else _count(details, "reasoning_tokens"),
    )


def _count(table: Any, name: str) -> int | None:
    value = table.get(name) if isinstance(table, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

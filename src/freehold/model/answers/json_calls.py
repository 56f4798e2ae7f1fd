"""The answer format of many models: `<tool_call>` tags around calls in JSON, `<think>` tags around reasoning."""

from __future__ import annotations

import json
import re
from typing import Literal

from freehold.core.parts import Part, ToolCallEnd, ToolCallStart
from freehold.model.answers.json_scanner import BrokenJsonError, JsonScanner, skip_space
from freehold.model.answers.parser import PartList, held_len

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

Start = Literal["text", "reasoning", "either"]
"""How an answer begins: as text, inside reasoning, or with a tag that tells."""

_FIRST_MARK = re.compile(r"[ \t\r\n]{0,16}<think>")
_NO_MARK_YET = re.compile(r"[ \t\r\n]{0,16}(?:|<|<t|<th|<thi|<thin|<think)\Z")
_ARGUMENTS = ("arguments", "parameters")


class _Call:
    """A call while it is read. name: None until it is whole."""

    __slots__ = ("args", "args_done", "key", "name", "scanner", "streams", "value")

    def __init__(self) -> None:
        self.name: str | None = None
        self.key: str | None = None  # of the member whose value is read; None while the key itself is
        self.scanner = JsonScanner()
        self.value: list[str] = []
        self.streams = False  # the value is passed on while it is read
        self.args: str | None = None  # held back as the name comes later
        self.args_done = False


class JsonCallParser:
    """Reads answers with calls in JSON.

    start: "text": no reasoning. "reasoning": the answer begins inside reasoning. "either": `<think>` in front, after
        at most 16 characters of white space, opens reasoning.
    calls: False: none are wanted, and what looks like one is text.

    Reasoning lasts until `</think>`; without one, all is reasoning, tool calls too. One line end after `<think>`
    and one before `</think>` belong to the tags, as do two after `</think>`. Thinking tags further on are text.

    A `<tool_call>` tag holds one call, calls in a JSON list (an empty list: no call), or calls one after the other.
    A call is an object with `name` and `arguments` (or `parameters`), in any order; other members are left out. The
    text of the arguments is passed on unchanged while it is written; arguments that are a JSON text are unpacked,
    null or none are `{}`. One line end directly before the tag belongs to it.

    Nothing is lost where the JSON in a tag is broken, is no call, or breaks off: what was not passed on as a call is
    text, from the tag itself if no call had begun, and so is all that follows, the closing tag too. A call that had
    begun ends there with `complete=False`; where the answer ends inside it, nothing of it becomes text.
    """

    def __init__(self, *, start: Start = "either", calls: bool = True) -> None:
        self._reads_calls = calls
        self._state = {"text": "text", "reasoning": "first line end", "either": "start"}[start]
        self._buffer = ""
        self._at = 0
        self._line_ends = 0  # still to be dropped after </think>
        self._num_calls = 0
        self._expect = ""
        self._listed = False
        self._raw: list[str] = []  # what was taken from a tag and is neither passed on nor known to be a call
        self._call: _Call | None = None

    def push(self, text: str) -> list[Part]:
        """The parts that became certain with `text`."""
        return self._read(text, final=False)

    def finish(self) -> list[Part]:
        """What was held back. Of a call that was cut off before its name was whole nothing is left."""
        return self._read("", final=True)

    def _read(self, text: str, *, final: bool) -> list[Part]:
        out = PartList()
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        steps = {
            "start": self._start,
            "first line end": self._first_line_end,
            "reasoning": self._reasoning,
            "text": self._text,
            "calls": self._calls,
        }
        while steps[self._state](out, final):
            pass
        if final and self._state == "calls":
            self._break_off(out, final=True)
        return out.take()

    # -- reasoning and text -------------------------------------------------------------------------------------

    def _start(self, out: PartList, final: bool) -> bool:
        found = _FIRST_MARK.match(self._buffer)
        if found is not None:
            self._state, self._at = "first line end", found.end()
        elif not final and _NO_MARK_YET.match(self._buffer):
            return False
        else:
            self._state = "text"
        return True

    def _first_line_end(self, out: PartList, final: bool) -> bool:
        if self._at == len(self._buffer):
            return False
        self._at += self._buffer[self._at] == "\n"
        self._state = "reasoning"
        return True

    def _reasoning(self, out: PartList, final: bool) -> bool:
        end = self._buffer.find(THINK_CLOSE, self._at)
        if end < 0:
            held = 0 if final else held_len(self._buffer, self._at, ["\n" + THINK_CLOSE, THINK_CLOSE])
            out.reasoning(self._take(len(self._buffer) - held))
            return False
        out.reasoning(self._take(end - self._line_end_before(end)))
        self._at = end + len(THINK_CLOSE)
        self._state, self._line_ends = "text", 2
        return True

    def _text(self, out: PartList, final: bool) -> bool:
        while self._line_ends and self._at < len(self._buffer):
            is_line_end = self._buffer[self._at] == "\n"
            self._at += is_line_end
            self._line_ends = self._line_ends - 1 if is_line_end else 0
        start = self._buffer.find(CALL_OPEN, self._at) if self._reads_calls else -1
        if start < 0:
            held = (
                0 if final or not self._reads_calls else held_len(self._buffer, self._at, ["\n" + CALL_OPEN, CALL_OPEN])
            )
            out.text(self._take(len(self._buffer) - held))
            return False
        out.text(self._take(start - self._line_end_before(start)))
        self._at = start
        self._raw = [self._take(start + len(CALL_OPEN))]
        self._state, self._expect, self._listed, self._call = "calls", "value", False, None
        return True

    def _line_end_before(self, end: int) -> bool:
        return end > self._at and self._buffer[end - 1] == "\n"

    def _take(self, end: int) -> str:
        piece, self._at = self._buffer[self._at : end], end
        return piece

    # -- the inside of a tag ------------------------------------------------------------------------------------

    def _calls(self, out: PartList, final: bool) -> bool:
        """Takes the inside of a tag. False: more is needed."""
        try:
            while self._at < len(self._buffer):
                if self._expect in ("member", "value of member"):
                    self._member(out)
                    continue
                self._raw.append(self._take(skip_space(self._buffer, self._at)))
                if self._at == len(self._buffer):
                    break
                if self._expect in ("after", "next"):
                    if not self._after(out):
                        return self._state != "calls"
                else:
                    self._sign(out)
        except BrokenJsonError as error:
            self._raw.append(self._take(error.position))
            self._break_off(out, final=False)
            self._state = "text"
            return True
        return False

    def _after(self, out: PartList) -> bool:
        """Takes what may follow a call outside of a list, or a list. False: the tag is over, or more is needed."""
        if self._buffer.startswith(CALL_CLOSE, self._at):
            self._take(self._at + len(CALL_CLOSE))
            self._state, self._raw = "text", []
            return False
        if CALL_CLOSE.startswith(self._buffer[self._at : self._at + len(CALL_CLOSE)]):
            return False
        if self._expect == "after":
            raise BrokenJsonError(self._at)
        self._sign(out)
        return True

    def _sign(self, out: PartList) -> None:
        """Takes one character outside of names and values."""
        char, expect = self._buffer[self._at], self._expect
        if char == "{" and expect in ("value", "item", "item or ]", "next"):
            self._call, self._expect = _Call(), "key or }"
        elif char == "[" and expect == "value":
            self._listed, self._expect = True, "item or ]"
        elif char == "]" and expect in ("item or ]", "comma or ]"):
            self._expect = "after"
        elif char == "," and expect == "comma or ]":
            self._expect = "item"
        elif self._call is not None and char == '"' and expect in ("key", "key or }"):
            self._call.scanner, self._call.key, self._expect = JsonScanner(), None, "member"
            return
        elif self._call is not None and char == ":" and expect == "colon":
            self._call.scanner, self._expect = JsonScanner(), "value of member"
        elif char == "," and expect == "comma or }":
            self._expect = "key"
        elif char == "}" and expect in ("key or }", "comma or }"):
            self._end_call(out)
            return
        else:
            raise BrokenJsonError(self._at)
        self._raw.append(self._take(self._at + 1))

    # -- one call -----------------------------------------------------------------------------------------------

    def _member(self, out: PartList) -> None:
        """Takes more of a key or of a value."""
        call = self._call
        assert call is not None
        if self._expect == "value of member":
            self._raw.append(self._take(skip_space(self._buffer, self._at)))
            if self._at == len(self._buffer):
                return
            self._begin_value(call)
        broken: BrokenJsonError | None = None
        try:
            end = call.scanner.feed(self._buffer, self._at)
        except BrokenJsonError as error:
            end, broken = error.position, error
        piece = self._take(end)
        if call.streams:
            out.arguments(self._num_calls - 1, piece)
        else:
            self._raw.append(piece)
            call.value.append(piece)
        if broken is not None:
            raise broken
        if call.scanner.done:
            self._end_member(out, call)

    def _begin_value(self, call: _Call) -> None:
        first = self._buffer[self._at]
        self._expect = "member"
        if call.key in _ARGUMENTS:
            if first not in '{"n' or call.args_done:
                raise BrokenJsonError(self._at)
            call.streams = first == "{" and call.name is not None
            if call.streams:
                self._raw = []

    def _end_member(self, out: PartList, call: _Call) -> None:
        value, call.value = "".join(call.value), []
        if call.key is None:
            call.key, self._expect = json.loads(value), "colon"
            return
        self._expect = "comma or }"
        if call.key in _ARGUMENTS:
            call.args_done = True
            call.args = None if call.streams else self._arguments(value)
            call.streams = False
        elif call.key == "name":
            name = json.loads(value) if value.startswith('"') else None
            if not name or call.name is not None:
                raise BrokenJsonError(self._at)
            call.name = name
            out.add(ToolCallStart(self._num_calls, name))
            self._num_calls += 1
            self._raw = []
        if call.name is not None and call.args is not None:
            out.arguments(self._num_calls - 1, call.args)
            call.args, self._raw = None, []

    def _arguments(self, value: str) -> str:
        """The object of arguments in a whole value: itself, the text of it unpacked, or an empty one for null."""
        if value == "null":
            return "{}"
        text = str(json.loads(value)) if value.startswith('"') else value
        scanner = JsonScanner()
        try:
            if text.lstrip(" \t\r\n").startswith("{") and not text[scanner.feed(text, 0) :].strip() and scanner.done:
                return text
        except BrokenJsonError:
            pass
        raise BrokenJsonError(self._at)

    def _end_call(self, out: PartList) -> None:
        call = self._call
        if call is None or call.name is None:
            raise BrokenJsonError(self._at)
        self._take(self._at + 1)
        if not call.args_done:
            out.arguments(self._num_calls - 1, "{}")
        out.add(ToolCallEnd(self._num_calls - 1))
        self._call, self._raw = None, []
        self._expect = "comma or ]" if self._listed else "next"

    def _break_off(self, out: PartList, *, final: bool) -> None:
        """Ends the tag without its closing tag."""
        begun = self._call is not None and self._call.name is not None
        if begun:
            out.add(ToolCallEnd(self._num_calls - 1, complete=False))
        rest = "".join(self._raw)
        # At the answer's end the beginning of a call is no text: its markup is for nobody. A bare tag may be prose.
        cut_off = final and (
            begun or "{" in rest or "[" in rest or self._expect == "after" or not rest.strip(" \t\r\n,")
        )
        if not cut_off:
            out.text(rest)
        self._call, self._raw = None, []

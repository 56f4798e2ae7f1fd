"""The answer format of MiniMax-M3: reasoning between tags, tool calls as tags behind a namespace marker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from freehold.core.errors import ArgumentError
from freehold.core.parts import Part, ToolCallEnd, ToolCallStart
from freehold.model.answers.m3_call import CallArguments
from freehold.model.answers.parser import PartList, held_len
from freehold.model.answers.schema import ANYTHING, parameters_by_tool
from freehold.model.m3_tokens import THINK_CLOSE, THINK_OPEN, TOOL_NAMESPACE

THINKING_MODES = ("enabled", "disabled", "adaptive")
"""The values of the template's `thinking_mode`."""

_MAX_TAG_LEN = 256  # characters of a name; without a bound, one unclosed tag would hold back all that follows
_TAG = re.compile(rf"<(/?)([^<>\r\n]{{0,{_MAX_TAG_LEN}}})>")
_OPEN_TAG = re.compile(rf"(?:</?[^<>\r\n]{{0,{_MAX_TAG_LEN}}})?\Z")
_INVOKE = re.compile(r"""invoke name=(["']?)(.*)\1""")
_BLOCK, _BLOCK_END, _INVOKE_END, _INVOKE_START = "<tool_call>", "</tool_call>", "</invoke>", "<invoke name="
_FIRST_MARK = re.compile(rf"([ \t\r\n]{{0,16}})({re.escape(THINK_OPEN)}|{re.escape(THINK_CLOSE)})")
_NO_MARK_YET = re.compile(
    r"[ \t\r\n]{0,16}(?:"
    + "|".join(re.escape(m[:n]) for m in (THINK_OPEN, THINK_CLOSE) for n in range(len(m)))
    + r")\Z"
)
_NAMESPACE_OR_CLOSE = re.compile(f"{re.escape(TOOL_NAMESPACE)}|{re.escape(THINK_CLOSE)}")
_NAMESPACE = re.compile(re.escape(TOOL_NAMESPACE))
_CLOSE = re.compile(re.escape(THINK_CLOSE))

_State = Literal["start", "reasoning", "content", "block", "call"]


class M3Parser:
    """Reads answers of MiniMax-M3.

    tools: declarations as the OpenAI API has them; their schemas decide the types of arguments.
    thinking_mode: as the prompt was rendered with. "enabled": the answer begins inside reasoning, and a repeated
        `<mm:think>` in front of it is dropped. "disabled": all of it is content. "adaptive" or None: `<mm:think>`
        in front opens reasoning, a bare `</mm:think>` in front is dropped, anything else is content; up to 16
        characters of white space before the tag go with it.
    calls: False: none are wanted, and what looks like one, the marker included, is text or reasoning.

    Reasoning lasts until `</mm:think>`; without one, all is reasoning. A tool block that opens inside reasoning ends
    it, and a later `</mm:think>` is then dropped. After reasoning, thinking tags are text.

    The namespace marker never reaches the text: with a tag of the format it is read as such, even where that tag
    stands alone (a call without a block around it counts; a stray closing tag is dropped), else the marker alone is
    dropped. One line end directly before a block belongs to the block. Inside a block white space between calls is
    dropped, other text there is content.

    Inside a call a closing tag closes what was left open inside it, one that closes nothing is ignored, and the
    call's own end, the block's end and the next call close everything. A declared string ends at a closing tag of
    something that is open; other tags in it are its text. How values are typed is told in `CallArguments`.

    Raises ArgumentError for another thinking_mode.
    """

    def __init__(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking_mode: str | None = None,
        calls: bool = True,
    ) -> None:
        if thinking_mode is not None and thinking_mode not in THINKING_MODES:
            known = ", ".join(map(repr, THINKING_MODES))
            raise ArgumentError(f"thinking_mode is {thinking_mode!r}; it must be one of {known}")
        self._reads_calls = calls
        self._parameters = parameters_by_tool(tools)
        self._state: _State = "content" if thinking_mode == "disabled" else "start"
        self._after_start: _State = "reasoning" if thinking_mode == "enabled" else "content"
        self._buffer = ""
        self._at = 0
        self._drop_close = False
        self._gap: list[str] | None = None  # white space after text inside a block; None: no text since the last tag
        self._num_calls = 0
        self._call: CallArguments | None = None

    def push(self, text: str) -> list[Part]:
        """The parts that became certain with `text`."""
        return self._read(text, final=False)

    def finish(self) -> list[Part]:
        """What was held back. A tag of the format that broke off is dropped; an open call ends incomplete."""
        return self._read("", final=True)

    def _read(self, text: str, *, final: bool) -> list[Part]:
        out = PartList()
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        steps = {"start": self._start, "call": self._inside_call}
        while steps.get(self._state, self._prose)(out, final):
            pass
        if final and self._call is not None:
            self._write(out)
            out.add(ToolCallEnd(self._num_calls - 1, complete=False))
            self._call = None
        return out.take()

    # -- reasoning, content, and what stands between the calls of a block ----------------------------------------

    def _start(self, out: PartList, final: bool) -> bool:
        found = _FIRST_MARK.match(self._buffer)
        if found is None:
            if not final and _NO_MARK_YET.match(self._buffer):
                return False
            self._state = self._after_start
        elif found.group(2) == THINK_OPEN:
            self._state, self._at = "reasoning", found.end()
        elif self._after_start == "reasoning":
            self._state = "reasoning"  # the reasoning is empty or white space
        else:
            self._state, self._at = "content", found.end()
        return True

    def _prose(self, out: PartList, final: bool) -> bool:
        """Takes text up to the next marker, and the marker. False: more is needed."""
        closable = self._state == "reasoning" or self._drop_close
        pattern = (_NAMESPACE_OR_CLOSE if closable else _NAMESPACE) if self._reads_calls else _CLOSE
        found = pattern.search(self._buffer, self._at) if closable or self._reads_calls else None
        if found is None:
            markers = ["\n" + TOOL_NAMESPACE, TOOL_NAMESPACE] if self._reads_calls else []
            markers += [THINK_CLOSE] if closable else []
            held = held_len(self._buffer, self._at, markers) if markers and not final else 0
            self._text(out, len(self._buffer) - held)
            return False
        if found.group() == THINK_CLOSE:
            self._text(out, found.start())
            self._at = found.end()
            if self._state == "reasoning":
                self._state = "content"
            self._drop_close = False
            return True
        tag = _format_tag(self._buffer, found.end())
        if tag is None:
            before = found.start() - self._ends_in_line_end(found.start())
            self._text(out, before)
            if final:  # the answer broke off inside a tag of the format
                self._at = len(self._buffer)
            return False
        self._marker(out, found, tag)
        return True

    def _ends_in_line_end(self, end: int) -> bool:
        return self._state != "reasoning" and end > self._at and self._buffer[end - 1] == "\n"

    def _marker(self, out: PartList, found: re.Match[str], tag: str) -> None:
        opens = tag == _BLOCK or tag.startswith(_INVOKE_START)
        self._text(out, found.start() - (opens and self._ends_in_line_end(found.start())))
        self._at = found.end() + len(tag)
        if tag == "":
            return
        self._gap = None
        if opens and self._state == "reasoning":
            self._drop_close = True
        if opens:
            self._state = "block"
        elif tag == _BLOCK_END and self._state == "block":
            self._state = "content"
        if tag.startswith(_INVOKE_START):
            invoke = _INVOKE.fullmatch(tag[1:-1])
            self._begin_call(out, invoke.group(2) if invoke else "")

    def _text(self, out: PartList, end: int) -> None:
        """Passes on the text up to `end`, as what it is here."""
        piece, self._at = self._buffer[self._at : end], max(end, self._at)
        if self._state == "reasoning":
            out.reasoning(piece)
        elif self._state == "content":
            out.text(piece)
        else:
            piece = piece if self._gap is not None else piece.lstrip()
            body = piece.rstrip()
            if body:
                out.text("".join([*(self._gap or ()), body]))
                self._gap = []
            if self._gap is not None:
                self._gap.append(piece[len(body) :])

    # -- calls --------------------------------------------------------------------------------------------------

    def _begin_call(self, out: PartList, name: str) -> None:
        out.add(ToolCallStart(self._num_calls, name))
        self._num_calls += 1
        self._call = CallArguments(self._parameters.get(name, ANYTHING))
        self._state = "call"

    def _end_call(self, out: PartList, state: _State) -> None:
        call = self._call
        if call is not None:
            call.end()
            self._write(out)
            out.add(ToolCallEnd(self._num_calls - 1))
        self._call, self._state, self._gap = None, state, None

    def _write(self, out: PartList) -> None:
        if self._call is not None:
            out.arguments(self._num_calls - 1, self._call.take())

    def _inside_call(self, out: PartList, final: bool) -> bool:
        """Takes text and tags of a call until it ends. False: more is needed."""
        call, buffer = self._call, self._buffer
        assert call is not None
        while True:
            start = buffer.find(TOOL_NAMESPACE, self._at)
            if start < 0:
                held = 0 if final else held_len(buffer, self._at, [TOOL_NAMESPACE])
                call.text(buffer[self._at : len(buffer) - held])
                self._at = len(buffer) - held
                break
            call.text(buffer[self._at : start])
            self._at = start
            after = start + len(TOOL_NAMESPACE)
            tag = _TAG.match(buffer, after)
            if tag is not None:
                self._at = tag.end()
                if self._tag(out, call, tag):
                    return True
            elif _OPEN_TAG.match(buffer, after):
                if final:  # the answer broke off inside a tag
                    self._at = len(buffer)
                break
            else:
                call.text(TOOL_NAMESPACE)
                self._at = after
        self._write(out)
        return False

    def _tag(self, out: PartList, call: CallArguments, tag: re.Match[str]) -> bool:
        """Takes a tag inside a call; True if it ended the call."""
        name = tag.group(2)
        if tag.group(1):
            if call.closes(name):
                call.close(name)
            elif name == "invoke":
                self._end_call(out, "block")
            elif name == "tool_call":
                self._end_call(out, "content")
            elif not call.takes_tags:
                call.text(TOOL_NAMESPACE + tag.group())
        elif not call.takes_tags:
            call.text(TOOL_NAMESPACE + tag.group())
        elif invoke := _INVOKE.fullmatch(name):
            self._end_call(out, "block")
            self._begin_call(out, invoke.group(2))
            return True
        else:
            call.open(name)
        return self._call is None


def _format_tag(buffer: str, at: int) -> str | None:
    """The tag of a block at `at`: "" if there is none, None if that cannot be told yet."""
    for tag in (_BLOCK, _BLOCK_END, _INVOKE_END):
        if buffer.startswith(tag, at):
            return tag
    found = _TAG.match(buffer, at)
    if found is not None:
        return found.group() if found.group().startswith(_INVOKE_START) else ""
    end = buffer[at:]
    if len(end) > len(_INVOKE_START) + _MAX_TAG_LEN:
        return ""
    if end.startswith(_INVOKE_START):
        return None if _OPEN_TAG.match(buffer, at) else ""
    known = (_BLOCK, _BLOCK_END, _INVOKE_END, _INVOKE_START)
    return None if any(tag.startswith(end) for tag in known) else ""

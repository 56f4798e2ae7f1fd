"""Reading one JSON value in pieces, checking it as strictly as RFC 8259 asks, without building it."""

from __future__ import annotations

import re

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_WHOLE_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")


class BrokenJsonError(Exception):
    """The text is no JSON from `position` on."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(f"no JSON at position {position}")


def skip_space(text: str, at: int) -> int:
    """The position after JSON's white space."""
    found = _SPACE.match(text, at)
    assert found is not None  # it matches anywhere
    return found.end()


class JsonScanner:
    """Follows one value through its pieces. It costs time in proportion to the text, and memory to its depth."""

    __slots__ = ("_expect", "_hex_left", "_open", "_scalar", "done")

    def __init__(self) -> None:
        self.done = False
        self._expect = "value"
        self._open: list[str] = []
        self._scalar: list[str] = []
        self._hex_left = 0

    def feed(self, text: str, at: int) -> int:
        """Reads on at text[at]; gives the position after what belongs to the value.

        That is the end of the text, unless the value is `done`; a number at the top is done only by what follows it.
        Raises BrokenJsonError.
        """
        while at < len(text) and not self.done:
            if self._expect in ("string", "key"):
                at = self._string(text, at)
            elif self._expect == "scalar":
                at = self._more_scalar(text, at)
            else:
                at = skip_space(text, at)
                if at < len(text):
                    at = self._sign(text, at)
        return at

    def _sign(self, text: str, at: int) -> int:
        """Takes one character outside of strings and scalars."""
        char, expect = text[at], self._expect
        if expect in ("value", "value or ]"):
            return self._begin(text, at)
        if expect == "colon" and char == ":":
            self._expect = "value"
        elif expect in ("key start", "key start or }") and char == '"':
            self._expect = "key"
        elif expect == "key start or }" and char == "}":
            self._close()
        elif expect == "comma" and char == ",":
            self._expect = "value" if self._open[-1] == "]" else "key start"
        elif expect == "comma" and char == self._open[-1]:
            self._close()
        else:
            raise BrokenJsonError(at)
        return at + 1

    def _begin(self, text: str, at: int) -> int:
        char = text[at]
        if char == "{":
            self._open.append("}")
            self._expect = "key start or }"
        elif char == "[":
            self._open.append("]")
            self._expect = "value or ]"
        elif char == '"':
            self._expect = "string"
        elif char == "]" and self._expect == "value or ]":
            self._close()
        elif _SCALAR.fullmatch(char):
            self._expect = "scalar"
            return at
        else:
            raise BrokenJsonError(at)
        return at + 1

    def _close(self) -> None:
        self._open.pop()
        self._after_value()

    def _after_value(self) -> None:
        self._expect = "comma"
        self.done = not self._open

    def _string(self, text: str, at: int) -> int:
        if self._hex_left > 0:
            if text[at] not in _HEX:
                raise BrokenJsonError(at)
            self._hex_left -= 1
            return at + 1
        if self._hex_left < 0:  # after a backslash
            if text[at] not in _ESCAPES:
                raise BrokenJsonError(at)
            self._hex_left = 4 if text[at] == "u" else 0
            return at + 1
        found = _PLAIN.match(text, at)
        assert found is not None  # it matches anywhere
        at = found.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._hex_left = -1
        elif text[at] != '"':
            raise BrokenJsonError(at)
        elif self._expect == "key":
            self._expect = "colon"
        else:
            self._after_value()
        return at + 1

    def _more_scalar(self, text: str, at: int) -> int:
        found = _SCALAR.match(text, at)
        assert found is not None  # it matches anywhere
        self._scalar.append(found.group())
        if found.end() < len(text):
            scalar, self._scalar = "".join(self._scalar), []
            if not _WHOLE_SCALAR.fullmatch(scalar):
                raise BrokenJsonError(found.end())
            self._after_value()
        return found.end()

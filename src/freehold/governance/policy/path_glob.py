"""Globs that are looked for in texts, in a time that grows with the text's length alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_DEEP = "**"
_MOST_CHARS = 255  # that a "*" stands for
_PORT = re.compile(r":[0-9]{1,5}(?=[/\\])")


class PathGlob:
    """A glob such as src/billing/** or github.com/acme/core-*, in any case.

    It is found from the beginning of a path's part, or after a sign in one, to the end of one or to a sign. `**` stands
    for any number of parts, at the end for one or more; `*` and `?` for signs within one.
    separators: the signs that part paths.
    """

    def __init__(self, glob: str, separators: str) -> None:
        given = glob.lower().strip("/")
        bare = re.sub(r"^(?:\*+/)*\**", "", given)  # what may stand before it anyway
        escaped = re.escape(separators)
        self._splits = re.compile(f"[{escaped}]+")
        colon = "" if ":" in separators else ":"
        self._token = re.compile(rf"[^\s{colon}\"'`<>|\x00]+")
        self._has_port = ":" in separators
        self._parts = [part if part == "*" or part.strip("*") else _DEEP for part in self._splits.split(bare) if part]
        # One of these stands in every text that it is found in.
        self._literal = max(re.split(rf"[*?{escaped}]+", bare), key=len)
        floats = given[: len(given) - len(bare)].endswith("*")  # within a part
        self._patterns = [self._compiled(number, floats) for number in range(len(self._parts))]

    def find(self, lower: str) -> Iterator[str]:
        """Paths in a text in lower case that fit; of each at most one."""
        if self._literal not in lower:
            return
        for token in self._token.finditer(lower):
            if self._literal in token[0]:
                path = _PORT.sub("", token[0]) if self._has_port else token[0]
                if self._fits([part for part in self._splits.split(path) if part not in ("", ".")]):
                    yield token[0]

    def _fits(self, parts: Sequence[str]) -> bool:
        """Whether the glob's parts follow one another somewhere in these."""
        last = len(self._parts) - 1
        waiting: set[int] = set()  # numbers of the glob's parts that may come next
        for part in parts:
            coming: set[int] = set()
            for number in (0, *waiting):
                if self._parts[number] == _DEEP:
                    coming.add(number + 1 if number == last else number)
                elif self._patterns[number].search(part):
                    coming.add(number + 1)
            if last + 1 in coming:
                return True
            # "**" also stands for no part at all, except at the end.
            waiting = coming | {n + 1 for n in coming if n < last and self._parts[n] == _DEEP}
        return False

    def _compiled(self, number: int, floats: bool) -> re.Pattern[str]:
        """A part as a pattern that is searched for in a path's part."""
        out = ""
        pieces = re.findall(r"\*+|[^*]+", self._parts[number])
        for index, piece in enumerate(pieces):
            if piece[0] == "*":
                continue
            literal = "".join("." if sign == "?" else re.escape(sign) for sign in piece)
            if index == len(pieces) - 1:
                literal += r"(?![\w-])" if number == len(self._parts) - 1 else r"\Z"
            # The first place where the rest of a "*" may go on is as good as any later one: no way back is kept.
            group = f"g{index}"
            out += f"(?=(?P<{group}>.{{0,{_MOST_CHARS}}}?{literal}))(?P={group})" if index else literal
        begins = r"\A" if number else "" if floats else r"(?<![\w-])"
        return re.compile(begins + out, re.DOTALL)

"""A disclosure as plain text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.plain import plain
from freehold.governance.disclosure.presentation import COVERAGE, MEANINGS, Row, sections_of

WIDTH = 100
_STATUS = re.compile(rf"\[\s*({'|'.join(MEANINGS)})\s*\]", re.IGNORECASE)


def as_text(disclosure: Disclosure) -> str:
    """The whole disclosure in lines of at most 100 characters, addresses apart.

    No value can make a line of its own, move the cursor, or show a status in the brackets of one.
    """
    return "\n".join(plain(line) for line in _lines(disclosure)) + "\n"


def _lines(disclosure: Disclosure) -> Iterator[str]:
    title = _words(disclosure.title)
    yield title
    yield "=" * len(title)
    author = _words(disclosure.author.name)
    yield from _wrapped(
        f"Disclosure {disclosure.name}, put together by {author} on {disclosure.issued}; read its sources again after"
        f" {disclosure.valid_until}. It states facts and who says so. It is no legal advice.",
        "",
    )
    if disclosure.other_paths:
        names = ", ".join(f"{name} ({kind})" for name, kind in disclosure.other_paths.items())
        yield from _wrapped(f"Other paths to the same model, each with a disclosure of its own: {names}", "")
    yield ""
    for status, meaning in MEANINGS.items():
        yield f"  [{status}] {meaning}"
    for section in sections_of(disclosure):
        yield ""
        yield section.title
        yield "-" * len(section.title)
        if section.jurisdictions:
            yield from _wrapped(COVERAGE, "")
        for row in section.rows:
            yield from _row(row)
        for jurisdiction in section.jurisdictions:
            by = ", ".join(jurisdiction.named_by) or "no fact of this disclosure"
            yield ""
            yield from _wrapped(f"{jurisdiction.name}: named by {by}", "")
            yield from _wrapped(f"  {jurisdiction.coverage}", "  ")
            for row in jurisdiction.rows:
                yield from _row(row)


def _row(row: Row) -> Iterator[str]:
    if row.status == "conflicting":
        yield f"{_words(row.label)}: [conflicting]"
    for number, line in enumerate(row.lines):
        lead = f"{_words(row.label)}: " if row.status != "conflicting" and number == 0 else "  - "
        yield from _wrapped(f"{lead}{_words(line.text)} [{line.status}]", "    ")
        source = "" if line.source is None else _words(f"{line.source.publisher}: {line.source.title}, ")
        yield from _wrapped(f"    {source}read {line.read}", "      ")
        if line.source is not None and line.source.url is not None:
            yield f"      {line.source.url}"
        if line.note:
            yield from _wrapped(f"    {_words(line.note)}", "      ")


def _words(text: str) -> str:
    """A text of the disclosure's, in which no status stands in brackets: those are the page's own."""
    return _STATUS.sub(r"(\1)", plain(text))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

"""A disclosure as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.presentation import MEANINGS, Row, sections_of

WIDTH = 100


def as_text(disclosure: Disclosure) -> str:
    """The whole disclosure in lines of at most 100 characters, addresses apart."""
    return "\n".join(_lines(disclosure)) + "\n"


def _lines(disclosure: Disclosure) -> Iterator[str]:
    yield disclosure.title
    yield "=" * len(disclosure.title)
    yield f"Disclosure {disclosure.name}, put together by {disclosure.author.name} on {disclosure.issued}; read its"
    yield f"sources again after {disclosure.valid_until}. It states facts and who says so. It is no legal advice."
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
        for row in section.rows:
            yield from _row(row)
        for jurisdiction in section.jurisdictions:
            by = ", ".join(jurisdiction.named_by) or "no fact of this disclosure"
            yield ""
            yield from _wrapped(f"{jurisdiction.name}: named by {by}", "")
            if not jurisdiction.rows:
                yield "  No provision of this jurisdiction was looked up."
            for row in jurisdiction.rows:
                yield from _row(row)


def _row(row: Row) -> Iterator[str]:
    if row.status == "conflicting":
        yield f"{row.label}: [conflicting]"
    for number, line in enumerate(row.lines):
        lead = f"{row.label}: " if row.status != "conflicting" and number == 0 else "  - "
        yield from _wrapped(f"{lead}{line.text} [{line.status}]", "    ")
        source = "" if line.source is None else f"{line.source.publisher}: {line.source.title}, "
        yield from _wrapped(f"    {source}read {line.read}", "      ")
        if line.source is not None and line.source.url is not None:
            yield f"      {line.source.url}"
        if line.note:
            yield from _wrapped(f"    {line.note}", "      ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

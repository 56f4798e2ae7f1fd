"""A disclosure as one HTML page: no script, nothing loaded from elsewhere, made to be read and printed."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, StrictUndefined, Template

from freehold.governance.disclosure.catalogue import DATA, catalogue
from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.presentation import COVERAGE, MEANINGS, glance_of, sections_of


def as_page(disclosure: Disclosure, signed_by: str | None = None) -> str:
    """The page. signed_by: the name of the key that signed the document beside it, if there is one.

    Values come from files that people write; all of them are escaped, and links lead to http(s) addresses alone.
    """
    return _template().render(
        disclosure=disclosure,
        signed_by=signed_by,
        meanings=MEANINGS,
        coverage=COVERAGE,
        glance=glance_of(disclosure),
        sections=sections_of(disclosure),
        catalogue=catalogue(),
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((DATA / "page.html.j2").read_text("utf-8"))

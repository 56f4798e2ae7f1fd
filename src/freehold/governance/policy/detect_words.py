"""What has a form but no check digit: addresses of persons, and source code. Off unless a class is given to it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from freehold.governance.policy.detector import Detector

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24}(?![\w-])"
)
# Names that standards set aside for examples belong to nobody.
# The user of version control's servers is nobody either.
_NOBODY = re.compile(
    r"^git@|@(?:[\w.-]+\.)?(?:example\.(?:com|org|net)|example|invalid|test|localhost)$", re.IGNORECASE
)
_PHONE = re.compile(r"(?<![\w+])\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}(?![0-9])")

# Lines that people write to machines.
_CODE_LINE = re.compile(
    r"""^[ \t]*(?:
      (?:from\s+[\w.]+\s+)?import\s+[\w.{*"'(] | \#\s*include\s*[<"] | using\s+[\w.:]+\s*;? $ | package\s+[\w.]+;?\s*$
    | (?:async\s+)?def\s+\w+\s*\( | class\s+\w+\s*[:({] | @\w[\w.]*\(?.*\)?\s*$
    | (?:pub(?:\([a-z]+\))?\s+)?(?:async\s+)?fn\s+\w+ | func\s+(?:\([^)]*\)\s*)?\w+\s*\( | impl\b.*\{
    | (?:export\s+)?(?:async\s+)?function\b | (?:export\s+)?(?:const|let|var)\s+[\w{\[].*=
    | (?:public|private|protected|static|final|virtual|inline)\s+[\w<>\[\]:*&]+.*[({;]
    | (?:if|for|while|switch|catch)\s*\(.*\)\s*\{? $ | (?:if|elif|for|while|with|try|except|else)\b[^.?!]*:\s*$
    | return\b.*[;)\]\w]$ | \}\s*(?:else|catch|finally)?.*\{?\s*$
    | (?:SELECT|INSERT|UPDATE|DELETE|CREATE)\s+.*\b(?:FROM|INTO|SET|TABLE)\b
    | [\w.\[\]>*&-]+\s*(?:=|\+=|:=)\s*[^=\s].*[;)\]}"'\w]\s*$ | [\w.:>-]+\(.*\)\s*;?\s*$ | .*[;{]\s*$
    )""",
    re.VERBOSE,
)
_LEAST_CODE_LINES = 3
# A line is known by its beginning. So no line costs more than a short one, and others get their turn between lines.
_LINE_CHARS = 200


def find_emails(text: str) -> Iterator[str]:
    """Addresses, in lower case."""
    for match in _EMAIL.finditer(text):
        if not _NOBODY.search(match[0]):
            yield match[0].lower()


def find_phones(text: str) -> Iterator[str]:
    """Numbers in international form, as digits."""
    for match in _PHONE.finditer(text):
        yield re.sub(r"[^0-9]", "", match[0])


def find_source_code(text: str) -> Iterator[str]:
    """Texts with at least three lines of a program in the same text; whose it is, they do not say."""
    for part in text.split("\x00"):
        if part.count("\n") < _LEAST_CODE_LINES - 1:
            continue
        count = 0
        for line in part.split("\n"):
            match = _CODE_LINE.match(line[:_LINE_CHARS])
            count += match is not None
            if match and count == _LEAST_CODE_LINES:
                yield match[0][:80]
                break


DETECTORS = (
    Detector("email", find_emails, is_prompt=True, in_joints=False),
    Detector("phone", find_phones, is_prompt=True, in_joints=False),
    Detector("source-code", find_source_code, is_prompt=True, in_joints=False),
)

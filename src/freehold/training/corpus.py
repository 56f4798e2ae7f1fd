"""Text to train on and to judge by: files, which side each is on, and windows of tokens."""

from __future__ import annotations

import hashlib
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from freehold.core.errors import ArgumentError
from freehold.core.text_file import read_utf8

_CODE = frozenset(".py .pyi .c .h .cc .cpp .hpp .inc .rs .js .ts .java .go .sh .sql".split())
_PROSE = frozenset(".txt .md .rst .tex .html".split())
_HELD_OUT = 5
"""One file of five is held out."""
_LEAST_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Document:
    """One text. name: as the card records it. kind: "code" or "prose"."""

    name: str
    kind: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is for judging only: its name decides, so that every run agrees."""
        return (
            hashlib.md5(self.name.encode(errors="surrogateescape"), usedforsecurity=False).digest()[0] % _HELD_OUT == 0
        )


def documents_in(paths: Sequence[Path]) -> list[Document]:
    """The texts in files and directories, by name. Raises ArgumentError if there are none, or one is not UTF-8."""
    found = []
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            kind = "code" if file.suffix in _CODE else "prose" if file.suffix in _PROSE else None
            if kind is None or file.stat().st_size < _LEAST_BYTES:
                continue
            name = str(file.relative_to(path.parent)) if path.is_dir() else file.name
            found.append(Document(name, kind, read_utf8(file)))
    if not found:
        raise ArgumentError(
            f"{', '.join(map(str, paths))}: no text of at least {_LEAST_BYTES} bytes with a known suffix "
            f"({' '.join(sorted(_CODE | _PROSE))})"
        )
    return found


def documents_at_hand() -> list[Document]:
    """What every Python installation has: the standard library's sources, and its language reference as prose."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(library.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(f.parts)]
    found = [
        Document(str(file.relative_to(library)), "code", text)
        for file in files
        if len(text := file.read_text(encoding="utf-8", errors="replace")) >= _LEAST_BYTES
    ]
    if find_spec("pydoc_data.topics") is not None:
        from pydoc_data.topics import topics

        found += [Document(f"pydoc topic {name}", "prose", text) for name, text in sorted(topics.items())]
    return found


def origin_of_texts_at_hand() -> str:
    """Which texts `documents_at_hand` gives, in words."""
    return f"the standard library and pydoc topics of Python {sys.version.split()[0]}"


def texts_of(paths: Sequence[Path]) -> tuple[list[Document], str]:
    """The texts in `paths`, or those at hand where there are none; and where they are from, in words."""
    if paths:
        return documents_in(paths), ", ".join(map(str, paths))
    return documents_at_hand(), origin_of_texts_at_hand()


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of one kind of text, from one document or from several that follow each other."""

    kind: str
    token_ids: tuple[int, ...]


def windows_of(
    documents: Sequence[Document],
    encode: Callable[[str], list[int]],
    length: int,
    count: int,
    *,
    seed: int,
    which: str = "given",
) -> list[Window]:
    """Up to `count` windows of `length` tokens, code and prose in turn, in an order that the seed decides.

    Documents of one kind follow each other, shuffled, without overlap. which: of the texts these are, in words.

    Raises ArgumentError if there is no whole window.
    """
    makers = {kind: _windows_of_kind(documents, kind, encode, length, seed) for kind in ("code", "prose")}
    found: list[Window] = []
    while len(found) < count and makers:
        for kind in list(makers):
            window = next(makers[kind], None)
            if window is None:
                del makers[kind]
            elif len(found) < count:
                found.append(window)
    if not found:
        raise ArgumentError(
            f"the {len(documents)} texts {which} have no window of {length} tokens; give more text or a shorter window"
        )
    return found


def _windows_of_kind(
    documents: Sequence[Document], kind: str, encode: Callable[[str], list[int]], length: int, seed: int
) -> Iterator[Window]:
    mine = sorted((d for d in documents if d.kind == kind), key=lambda d: d.name)
    random.Random(seed).shuffle(mine)
    tokens: list[int] = []
    for document in mine:
        tokens += encode(document.text)
        while len(tokens) >= length:
            yield Window(kind, tuple(tokens[:length]))
            tokens = tokens[length:]

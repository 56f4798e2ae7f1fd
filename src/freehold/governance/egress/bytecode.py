"""Bytecode that Python would run instead of the sources beside it: whether it is theirs."""

from __future__ import annotations

import importlib.util
import marshal
from pathlib import Path

_HEAD = 16  # magic number, flags, and either time and size or a hash of the source
_OPTIMIZED = ("", "1", "2")


def foreign_bytecode(package: Path) -> list[Path]:
    """The bytecode files of a package's sources that this interpreter would run and that say something else than they.

    Files that it would make anew, since they belong to an older source or to another Python, are none of these. The
    sources are compiled to compare: some seconds for a package of hundreds of files.
    """
    return [
        cached
        for source in sorted(package.rglob("*.py"))
        for optimized in _OPTIMIZED
        if (cached := Path(importlib.util.cache_from_source(source, optimization=optimized))).exists()
        and _is_foreign(source, cached, int(optimized or 0))
    ]


def _is_foreign(source: Path, cached: Path, optimized: int) -> bool:
    data, text = cached.read_bytes(), source.read_bytes()
    if data[:4] != importlib.util.MAGIC_NUMBER or not _would_run(data, source, text):
        return False
    try:
        found = marshal.loads(data[_HEAD:])
    except (EOFError, ValueError, TypeError):
        return True
    return bool(found != compile(text, source, "exec", dont_inherit=True, optimize=optimized))


def _would_run(data: bytes, source: Path, text: bytes) -> bool:
    flags = int.from_bytes(data[4:8], "little")
    if flags & 1:  # by hash; the second bit asks for a check
        return not flags & 2 or data[8:16] == importlib.util.source_hash(text)
    state = source.stat()
    time, size = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
    return (time, size) == (int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF)

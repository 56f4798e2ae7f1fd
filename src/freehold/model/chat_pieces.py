"""Encoding rendered conversations piece by piece: what was encoded in the turn before is not encoded again."""

from __future__ import annotations

import sys
import threading
from array import array
from collections import OrderedDict

from freehold.model.tokenizer import Tokenizer

# Of one remembered piece beside its text and its ids: objects, dictionary entry.
_PIECE_OVERHEAD = 200


class PieceEncoder:
    """A tokenizer for long texts that come again with a little more at their end. Safe to use from several threads.

    A text is cut at its control tokens; the ids of what stands between them are remembered.

    max_bytes: most bytes of RAM for remembered pieces, those used least recently go first. 0 remembers nothing.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_bytes: int = 32 << 20) -> None:
        self.tokenizer = tokenizer
        self._max_bytes = max_bytes
        self._cuts = tokenizer.cuts if max_bytes else None
        self._pieces: OrderedDict[str, array[int]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that remembered pieces take now."""
        return self._nbytes

    def encode(self, text: str) -> list[int]:
        """The ids that `tokenizer.encode(text, allow_special=True, add_bos=False)` gives; raises as that does."""
        if self._cuts is None:
            return self.tokenizer.encode(text, allow_special=True, add_bos=False)
        ids: list[int] = []
        start = 0
        for cut in self._cuts.finditer(text):
            if cut.start() > start:
                ids += self._piece(text[start : cut.start()])
            ids += self._piece(cut.group())
            start = cut.end()
        if start < len(text):
            ids += self._piece(text[start:])
        return ids

    def _piece(self, piece: str) -> array[int]:
        with self._lock:
            known = self._pieces.get(piece)
            if known is not None:
                self._pieces.move_to_end(piece)
                return known
        ids = array("i", self.tokenizer.encode(piece, allow_special=True, add_bos=False))
        self._keep(piece, ids)
        return ids

    def _keep(self, piece: str, ids: array[int]) -> None:
        size = _size(piece, ids)
        if size > self._max_bytes // 4:
            return  # it would drive out all others
        with self._lock:
            if piece in self._pieces:
                return
            self._pieces[piece] = ids
            self._nbytes += size
            while self._nbytes > self._max_bytes:
                self._nbytes -= _size(*self._pieces.popitem(last=False))


def _size(piece: str, ids: array[int]) -> int:
    return sys.getsizeof(piece) + ids.itemsize * len(ids) + _PIECE_OVERHEAD

"""From a stream of token ids to a stream of text: whole characters, and stop texts that never leak."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from freehold.core.errors import ArgumentError
from freehold.model.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one token at a time.

    All pushes and the flush, joined, equal `tokenizer.decode` of all ids: bytes of an incomplete character
    are held back, bytes that can no longer become one are U+FFFD. At most three bytes are ever held, so each
    push costs time in proportion to its token alone.

    skip_special: leave out special tokens. Parsing reasoning or tool calls needs them kept.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often a part of it, or empty.

        Raises TokenizerError for an id outside the vocabulary; the stream then stands where it stood.
        """
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """What was held back: nothing, or U+FFFD for an incomplete character. The decoder is then as new."""
        return self._utf8.decode(b"", final=True)


class _Prefix:
    """How much of one stop text the end of the stream spells (the automaton of Knuth, Morris and Pratt)."""

    __slots__ = ("_fallback", "length", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.length = 0
        # _fallback[n]: the longest proper prefix of text[:n] that is also its suffix.
        self._fallback = [0, 0]
        matched = 0
        for character in text[1:]:
            while matched and text[matched] != character:
                matched = self._fallback[matched]
            if text[matched] == character:
                matched += 1
            self._fallback.append(matched)

    def step(self, character: str) -> bool:
        """Takes one more character; whether the stop text is now complete."""
        while self.length and self.text[self.length] != character:
            self.length = self._fallback[self.length]
        if self.text[self.length] == character:
            self.length += 1
        return self.length == len(self.text)


class StopMatcher:
    """Cuts a stream of text at the first stop text.

    The stop text whose last character comes first wins, the longest of those that end there. The answer is
    everything before it, whichever way the stream was cut into pieces.

    stops: texts, none of them empty; may be an empty sequence, then everything passes.
    matched: the stop text that was hit, or None.
    Raises ArgumentError for an empty stop text, which would match everywhere.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise ArgumentError(f"stops is the text {stops!r}; it must be a sequence of texts, for one: [{stops!r}]")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise ArgumentError(f"stops holds {stop!r}; each stop must be a text of at least one character")
        self._prefixes = [_Prefix(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """What of the stream so far is now certain to belong to the answer, and whether a stop text was hit.

        Held back is only what may still become a stop text. After a hit nothing more comes: ("", True).
        """
        if self.matched is not None:
            return "", True
        if not self._prefixes:
            return text, False
        seen = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            complete = [prefix.text for prefix in self._prefixes if prefix.step(character)]
            if complete:
                self.matched = max(complete, key=len)
                self._held = ""
                return seen[: end - len(self.matched)], True
        keep = max(prefix.length for prefix in self._prefixes)
        certain = len(seen) - keep
        self._held = seen[certain:]
        return seen[:certain], False

    def flush(self) -> str:
        """What was held back and belongs to the answer after all, as the stream has ended."""
        rest, self._held = self._held, ""
        for prefix in self._prefixes:
            prefix.length = 0
        return rest

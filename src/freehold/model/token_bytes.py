"""From a token as a vocabulary spells it to the bytes that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from freehold.core.errors import TokenizerError

Spelling = Callable[[str], bytes]
_SENTENCEPIECE_SPACE = "\u2581"


def _byte_letters() -> dict[str, int]:
    """The letter that a byte-level vocabulary writes for each byte.

    Printable Latin-1 characters stand for themselves; the 68 other bytes take the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    letters.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return letters


BYTE_OF_LETTER: Mapping[str, int] = _byte_letters()
LETTER_OF_BYTE: Mapping[int, str] = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}


def byte_level(token: str) -> bytes:
    """Bytes of a token of a byte-level vocabulary (GPT-2 form).

    A token with a character outside that alphabet is not spelled in it and stands for its own text.
    """
    try:
        return bytes([BYTE_OF_LETTER[letter] for letter in token])
    except KeyError:
        return token.encode()


def sentencepiece(token: str) -> bytes:
    """Bytes of a token of a sentencepiece-style vocabulary: "<0x0A>" is one byte, U+2581 is a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SENTENCEPIECE_SPACE, " ").encode()


def spelling_of(decoder: Mapping[str, Any] | None, where: str) -> Spelling:
    """The spelling that a tokenizer.json's `decoder` entry declares.

    Raises TokenizerError for any decoder that is neither byte-level nor sentencepiece-style.
    """
    kinds: set[str] = set()
    if decoder is not None:
        steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
        kinds = {str(step.get("type")) for step in steps}
    if "ByteLevel" in kinds:
        return byte_level
    if kinds & {"ByteFallback", "Metaspace"}:
        return sentencepiece
    raise TokenizerError(
        f"{where}: its decoder is {sorted(kinds) or 'absent'}; only byte-level (ByteLevel) and "
        "sentencepiece-style (ByteFallback, Metaspace) vocabularies can be turned back into text here"
    )

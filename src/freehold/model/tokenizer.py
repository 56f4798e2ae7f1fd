"""From text to token ids and back: the `tokenizers` library, with exact bytes and nothing done unasked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from freehold.core.errors import TokenizerError
from freehold.model.token_bytes import spelling_of
from freehold.model.tokenizer_files import read_directory, read_json
from freehold.model.tokenizer_gguf import read_gguf
from freehold.model.tokenizer_parts import TokenizerParts


class Tokenizer:
    """A vocabulary with its special tokens. Immutable, and safe to use from several threads.

    Build one with `from_file`, `from_directory` or `from_gguf`.

    vocab_size: one more than the highest token id. A model's embedding may have more rows (padding); their
        ids are unknown here.
    eos_ids: tokens that end an answer. May be empty.
    bos_id: the token that the files call "beginning of sequence", or None.
    add_bos: whether the files ask for `bos_id` in front of every text. Chat templates write their own.
    special_ids: control tokens, those that `decode` leaves out unless told otherwise. Added tokens that the
        files do not mark as special are ordinary text for everything here, as they were in training.
    chat_template: the Jinja source that came with the vocabulary, or None.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._where = parts.where
        self._with_special = parts.backend
        # A file may carry a length limit or padding from training; either would change a text silently.
        self._with_special.no_truncation()
        self._with_special.no_padding()
        self._added = {int(i): t for i, t in self._with_special.get_added_tokens_decoder().items()}
        self._plain = self._without_special(self._with_special, self._added)
        decoder = self._with_special.decoder
        self._spell = spelling_of(None if decoder is None else json.loads(decoder.__getstate__()), parts.where)
        vocabulary = self._with_special.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError(f"{parts.where}: the vocabulary is empty")
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.special_ids: frozenset[int] = frozenset(i for i, t in self._added.items() if t.special)
        self.bos_id: int | None = parts.bos_id
        self.add_bos: bool = parts.add_bos
        self.eos_ids: frozenset[int] = frozenset(parts.eos_ids)
        self._first_eos_id: int | None = parts.eos_ids[0] if parts.eos_ids else None
        self.chat_template: str | None = parts.chat_template
        self._bytes: dict[int, bytes] = {}
        for name, token_id in (("bos", self.bos_id), *(("eos", i) for i in sorted(self.eos_ids))):
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"{self._where}: the {name} id {token_id} is outside the vocabulary of {self.vocab_size} tokens"
                )
        if self.add_bos and self.bos_id is None:
            raise TokenizerError(f"{self._where}: it asks for a BOS in front of every text but names no BOS token")

    # -- construction ---------------------------------------------------------------------------------------

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        extra_eos_ids: Iterable[int] = (),
    ) -> Tokenizer:
        """A tokenizer from a tokenizer.json.

        config: the contents of tokenizer_config.json (bos_token, eos_token, add_bos_token, chat_template).
        generation_config: the contents of generation_config.json (eos_token_id).
        extra_eos_ids: further tokens that end an answer.
        Raises TokenizerError if the file is absent, not a tokenizer, or of a kind whose bytes cannot be told.
        """
        return cls(read_json(Path(path), config or {}, generation_config or {}, extra_eos_ids))

    @classmethod
    def from_directory(
        cls, directory: str | Path, *, pre: str | None = None, extra_eos_ids: Iterable[int] = ()
    ) -> Tokenizer:
        """A tokenizer from a model directory in the Hugging Face layout.

        Reads tokenizer.json, or vocab.json with merges.txt (byte-level BPE; `pre` then names the
        pre-tokenizer unless config.json's model_type decides it), and tokenizer_config.json,
        generation_config.json and chat_template.jinja where they are there.
        Raises TokenizerError for a directory that has only a sentencepiece tokenizer.model, or none at all.
        """
        return cls(read_directory(Path(directory), pre, extra_eos_ids))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, extra_eos_ids: Iterable[int] = ()) -> Tokenizer:
        """A tokenizer from the `tokenizer.*` key/value pairs of a GGUF file.

        Raises TokenizerError for a vocabulary that is not byte-level BPE ("gpt2"), for an unknown
        pre-tokenizer, and for arrays that contradict each other.
        """
        return cls(read_gguf(metadata, extra_eos_ids))

    @staticmethod
    def _without_special(backend: Backend, added: Mapping[int, AddedToken]) -> Backend:
        """A second view of the same vocabulary that takes special tokens in a text for ordinary characters.

        The library's switch is a state of the whole object, so one object cannot serve both kinds of call
        from two threads. The model, which holds the memory, is shared.
        """
        plain = Backend(backend.model)
        if backend.normalizer is not None:
            plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            plain.pre_tokenizer = backend.pre_tokenizer
        for _, token in sorted(added.items()):
            (plain.add_special_tokens if token.special else plain.add_tokens)([token])
        if {int(i): t.content for i, t in plain.get_added_tokens_decoder().items()} != {
            i: t.content for i, t in added.items()
        }:
            raise TokenizerError(
                "the ids of the added tokens do not follow each other after the vocabulary; the "
                "tokenizer's files are damaged or were edited by hand"
            )
        plain.encode_special_tokens = True
        return plain

    # -- text to ids ----------------------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Token ids of `text`.

        allow_special: False: a special token written in the text is encoded as the characters it is made of,
            so that nobody can forge one; True, for rendered chat templates: it becomes its token.
        add_bos: whether to put `bos_id` in front; None: what the tokenizer's files say. It is never doubled.
            An EOS is never added.
        Raises TokenizerError for a text with lone surrogates, for add_bos=True without a BOS token, and
        where a vocabulary could encode a text only by forging a special token.
        """
        backend = self._with_special if allow_special else self._plain
        try:
            # The batch call is the only one that computes no character offsets; it takes half the time.
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError as error:
            raise TokenizerError(_why_not_encodable(text)) from error
        if not allow_special and not self.special_ids.isdisjoint(ids):
            forged = next(i for i in ids if i in self.special_ids)
            raise TokenizerError(
                f"the text spells the special token {self.token_bytes(forged).decode()!r}, "
                "and this vocabulary has no other way to encode it; change the text, or allow special tokens"
            )
        if self.add_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise TokenizerError(f"{self._where}: add_bos was asked for, but there is no BOS token")
            if not ids or ids[0] != self.bos_id:
                ids.insert(0, self.bos_id)
        return ids

    # -- ids to text ----------------------------------------------------------------------------------------

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token stands for its name in UTF-8.

        Bytes of one token need not be whole characters. Raises TokenizerError for an id outside the
        vocabulary.
        """
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        added = self._added.get(token_id)
        if added is not None:
            content = added.content.encode()
        else:
            token = self._with_special.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
            if token is None:
                raise TokenizerError(
                    f"token id {token_id} is not in the vocabulary ({self.vocab_size} tokens from {self._where})"
                )
            content = self._spell(token)
        self._bytes[token_id] = content
        return content

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`: their bytes joined and read as UTF-8, with U+FFFD for what is not UTF-8.

        skip_special: leave out `special_ids`. Parsing reasoning or tool calls needs them kept.
        Sentencepiece-style vocabularies put a space in front of a text; it is kept, as streams could not
        tell.
        Raises TokenizerError for an id outside the vocabulary.
        """
        skipped = self.special_ids if skip_special else frozenset()
        return b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode("utf-8", errors="replace")

    # -- facts ----------------------------------------------------------------------------------------------

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact spelling in the vocabulary, or None."""
        token_id: int | None = self._with_special.token_to_id(token)
        return token_id

    @property
    def bos_token(self) -> str:
        """The text of the BOS token; empty if there is none."""
        return "" if self.bos_id is None else self.token_bytes(self.bos_id).decode("utf-8", errors="replace")

    @property
    def eos_token(self) -> str:
        """The text of the EOS token that the files name first; empty if there is none."""
        first = self._first_eos_id
        return "" if first is None else self.token_bytes(first).decode("utf-8", errors="replace")

    @cached_property
    def cuts(self) -> re.Pattern[str] | None:
        """Finds the added tokens at which `encode(text, allow_special=True)` cuts a text first.

        What stands between two of them can be encoded alone. None if that is not so in this vocabulary: where a token
        swallows space beside it, or a word is spelled differently at the start of a text.
        """
        tokens = [token for token in self._added.values() if not token.normalized and token.content]
        pre = self._with_special.pre_tokenizer
        spelling = "" if pre is None else pre.__getstate__().decode()
        if not tokens or "Metaspace" in spelling or any(t.lstrip or t.rstrip or t.single_word for t in tokens):
            return None
        # The library takes the longest of those that begin at the same place, as the first alternative is taken here.
        spellings = sorted((token.content for token in tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spellings)))

    @cached_property
    def _digest(self) -> str:
        document: dict[str, Any] = json.loads(self._with_special.to_str())
        identity = {name: document.get(name) for name in ("added_tokens", "model", "normalizer", "pre_tokenizer")}
        identity["bos"] = [self.bos_id, self.add_bos]
        canonical = json.dumps(identity, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides how a text is encoded.

        Vocabulary, merges, added tokens with their flags, normalizer, pre-tokenizer and the BOS rule. Two
        tokenizers with one digest give the same ids for every text.
        """
        return self._digest


def _why_not_encodable(text: object) -> str:
    if not isinstance(text, str):
        return f"only a str can be encoded, not {type(text).__name__}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "which no UTF-8 text can hold; remove or replace it"
        )
    return "the text cannot be encoded"

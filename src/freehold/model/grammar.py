"""Grammars that an answer has to follow: which tokens may come next, token by token.

The grammar engine is llguidance (MIT). Of the two that are alive in 2026 it is the one that refuses what it cannot
enforce: xgrammar 0.2 drops keywords of a JSON schema silently, and brings transformers and triton along. llguidance
1.9 (September 2026) is one wheel for all Pythons without dependencies, takes tokens as bytes, so that a tokenizer out
of a GGUF file serves as well as any other, knows several end-of-sequence tokens and special tokens by id, and computes
masks from the grammar as it goes, without a long compilation before the first token.

What we do not leave to it: end-of-sequence tokens are set here, by whether the grammar may end; it is told to force
nothing (`no_forcing`), so that a piece of text that must come may come in any tokens, as the model likes; and the
keywords of JSON schemas are checked in `grammar_schema`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from freehold.core.errors import RequestError, TokenizerError

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_MOST_ITEMS = 25_000
"""Most ways to go on that the parser follows at once. An object takes four for each optional property, and OpenAI's API
allows 5000 of them; the library's own 2000 would end answers in an error at some 500."""
_MOST_ITEMS_OF_MASK = 80 * _MOST_ITEMS
"""The same over all tokens of one mask: wherever a token ends a member, or white space before a comma, the parser looks
at all members that may come next. A vocabulary of 49,000 tokens has some thirteen such places; with the library's own
50,000, answers would end in an error at some 900 optional members."""
_MOST_KEPT = 64
"""So many compiled grammars are kept; an agent's tools make the same one again and again."""


class Vocabulary(Protocol):
    """What grammars need of a tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token. Raises TokenizerError for an id that is none."""


class Grammars:
    """Compiles grammars for one vocabulary and keeps the newest. Safe to use from several threads.

    Special tokens never match a grammar's text, only `<[id]>` or `<name>` in a rule.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        """vocab_size: tokens of the model. Those that the vocabulary does not know are never allowed."""
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._eos = np.array(sorted(i for i in vocabulary.eos_ids if i < vocab_size), dtype=np.int64)
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str) -> GrammarMatcher:
        """A matcher at the beginning of the grammar. Raises RequestError if the grammar is none, or too large."""
        copy = self._compile(grammar).deep_copy()
        copy.compute_bitmask()
        if copy.is_error():  # copies share a lexer, and one of them has used it up
            with self._lock:
                self._compiled.pop(grammar, None)
            copy = self._compile(grammar).deep_copy()
        return GrammarMatcher(copy, self._vocab_size, self._eos)

    def check(self, grammar: str) -> None:
        """Raises RequestError where `matcher` would, and makes the next call of it cheap."""
        self._compile(grammar)

    def warm(self) -> None:
        """Makes the table of tokens, which takes up to a second and which else the first grammar waits for."""
        with self._lock:
            self._table()

    def _table(self) -> LLTokenizer:
        """The vocabulary as the library holds it; the lock is held."""
        if self._tokens is None:
            self._tokens = _tokens_of(self._vocabulary, self._vocab_size)
        return self._tokens

    def _compile(self, grammar: str) -> LLMatcher:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found
            tokens = self._table()
        # Outside the lock: a large grammar takes a while, and other requests need not wait for it.
        compiled = _compiled(tokens, grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > _MOST_KEPT:
                self._compiled.popitem(last=False)
        return compiled


class GrammarMatcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos: NDArray[np.int64]) -> None:
        """The matcher is this object's own; eos: ids of the tokens that end an answer."""
        self._matcher, self._vocab_size, self._eos = matcher, vocab_size, eos

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is whole."""
        return self._matcher.is_accepting()

    @property
    def is_done(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> NDArray[np.int64]:
        """Ids that may come next, ascending. Empty if the vocabulary has no token that goes on.

        Raises RequestError when the grammar became too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = np.zeros(self._vocab_size, dtype=bool)
        known = np.unpackbits(bits, bitorder="little", count=min(self._vocab_size, 8 * len(bits)))
        mask[: len(known)] = known
        mask[self._eos] = self._matcher.is_accepting()
        return np.flatnonzero(mask)

    def push(self, token: int) -> None:
        """Goes on with a token out of `allowed` that ends nothing. Raises RequestError if it cannot follow."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _first_line(self._matcher.get_error())
            raise RequestError(
                f"the grammar cannot be followed any further: {reason}; where it is too large, send a simpler schema",
                field="grammar",
            )


def lark_error(grammar: str) -> str:
    """Why the grammar is none, in the library's words; empty if it is one. Special tokens in it are not looked up."""
    _, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(grammar + _OPTIONS))
    return "; ".join(messages)


def _compiled(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    limits = LLParserLimits(max_items_in_row=_MOST_ITEMS, step_max_items=_MOST_ITEMS_OF_MASK, verbose_errors=False)
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(grammar + _OPTIONS), log_level=0, limits=limits)
    if matcher.is_error():
        raise RequestError(f"the grammar cannot be used: {matcher.get_error().strip()}", field="grammar")
    warnings = matcher.get_grammar_warnings()
    if warnings:  # it would be followed only in part
        raise RequestError(f"the grammar cannot be used as it is: {'; '.join(warnings)}", field="grammar")
    first = matcher.deep_copy()
    first.compute_bitmask()
    if first.is_error():
        raise RequestError(f"no answer fits the grammar: {_first_line(first.get_error())}", field="grammar")
    return matcher


def _tokens_of(vocabulary: Vocabulary, vocab_size: int) -> LLTokenizer:
    """The vocabulary as llguidance holds it."""
    eos = sorted(i for i in vocabulary.eos_ids if i < vocab_size)
    special = sorted({*eos, *(i for i in vocabulary.special_ids if i < vocab_size)})
    source = _TokenSource(_all_bytes(vocabulary, vocab_size), special, eos)
    # It wants one end token at least. Without any, an id after the last token stands for it, and is never allowed.
    return LLTokenizer(TokenizerWrapper(source), eos_token=eos or [vocab_size])


def _all_bytes(vocabulary: Vocabulary, vocab_size: int) -> Iterable[bytes]:
    for token in range(vocab_size):
        try:
            yield vocabulary.token_bytes(token)
        except TokenizerError:
            yield b""  # padding of the embedding: no text, and never allowed


class _TokenSource:
    """A vocabulary in the shape that llguidance's constructor reads."""

    bos_token_id = None

    def __init__(self, tokens: Iterable[bytes], special: list[int], eos: list[int]) -> None:
        self.tokens = list(tokens)
        self.special_token_ids = special
        if not eos:
            self.special_token_ids = [*special, len(self.tokens)]
            self.tokens.append(b"<no end of sequence>")
        self.eos_token_id = eos[0] if eos else len(self.tokens) - 1
        self._of_byte = {token[0]: i for i, token in reversed(list(enumerate(self.tokens))) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Ids of a text, byte by byte; asked for only to force a text, which our grammars switch off."""
        return [self._of_byte[byte] for byte in text if byte in self._of_byte]


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]

"""Grammars over a vocabulary: compiled once, by several threads, also without an end token."""

from __future__ import annotations

import threading

import pytest

from freehold.core.errors import RequestError
from freehold.model import grammar as module
from freehold.model.grammar import Grammars
from support.grammar_walk import NUM_TOKENS, Bytes


def count_compilations(monkeypatch) -> list[str]:
    compiled: list[str] = []
    original = module._compiled

    def counting(tokens, grammar):
        compiled.append(grammar)
        return original(tokens, grammar)

    monkeypatch.setattr(module, "_compiled", counting)
    return compiled


def test_a_grammar_is_compiled_once_while_it_is_among_the_newest(monkeypatch):
    compiled, grammars = count_compilations(monkeypatch), Grammars(Bytes(), NUM_TOKENS)
    grammars.check('start: "a"')
    grammars.matcher('start: "a"')
    assert len(compiled) == 1
    for number in range(module._MOST_KEPT):
        grammars.check(f'start: "{number}"')
    grammars.check('start: "a"')
    assert compiled.count('start: "a"') == 2


def test_matchers_of_one_grammar_do_not_disturb_each_other():
    grammars = Grammars(Bytes(), NUM_TOKENS)
    first, second = (grammars.matcher('start: "ab" | "cd"') for _ in range(2))
    first.push(ord("a"))
    assert first.allowed().tolist() == [ord("b")]
    assert second.allowed().tolist() == [ord("a"), ord("c")]


def test_the_table_of_tokens_is_made_once_and_may_be_made_before(monkeypatch):
    made, original = [], module._tokens_of
    monkeypatch.setattr(module, "_tokens_of", lambda *of: made.append(of) or original(*of))
    grammars = Grammars(Bytes(), NUM_TOKENS)
    grammars.warm()
    assert len(made) == 1
    grammars.check('start: "a"')
    grammars.warm()
    assert len(made) == 1


def test_threads_may_check_and_match_at_once():
    grammars, wrong = Grammars(Bytes(), NUM_TOKENS), []

    def work(number: int) -> None:
        for turn in range(20):
            matcher = grammars.matcher(f'start: "x{(number + turn) % 5}"')
            matcher.push(ord("x"))
            if matcher.allowed().tolist() != [ord(str((number + turn) % 5))]:
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


def test_a_vocabulary_without_an_end_token_serves_grammars_that_end_by_themselves():
    class Endless(Bytes):
        eos_ids: frozenset[int] = frozenset()

    matcher = Grammars(Endless(), NUM_TOKENS).matcher("start: /a{2}/")
    for _ in range(2):
        assert matcher.allowed().tolist() == [ord("a")]
        matcher.push(ord("a"))
    assert matcher.is_done
    open_ended = Grammars(Endless(), NUM_TOKENS).matcher("start: /a+/")
    open_ended.push(ord("a"))
    assert open_ended.allowed().tolist() == [ord("a")]


def test_a_model_with_more_rows_or_fewer_than_the_vocabulary():
    for size in (200, NUM_TOKENS + 100):
        allowed = Grammars(Bytes(), size).matcher("start: /(?s:.*)/").allowed()
        assert allowed.max() < min(size, NUM_TOKENS)


def test_a_token_that_cannot_follow_is_refused():
    matcher = Grammars(Bytes(), NUM_TOKENS).matcher('start: "ab"')
    with pytest.raises(RequestError, match="cannot be followed"):
        matcher.push(ord("z"))
    assert not matcher.is_done


def test_a_piece_that_must_come_may_come_in_any_tokens():
    class Pairs(Bytes):
        def token_bytes(self, token_id: int) -> bytes:
            return b"ab" if token_id == NUM_TOKENS else super().token_bytes(token_id)

    matcher = Grammars(Pairs(), NUM_TOKENS + 1).matcher('start: "abc"')
    assert matcher.allowed().tolist() == [ord("a"), NUM_TOKENS]


def test_an_answer_that_uses_up_the_lexer_spoils_no_later_one():
    long = '%json {"type": "string", "minLength": 50000}'
    grammars, grammar = Grammars(Bytes(), NUM_TOKENS), f'start: "<" long | ">"\nlong: {long}'
    first = grammars.matcher(grammar)

    def answer() -> None:
        for byte in b'<"' + b"a" * 50_000:
            first.allowed()
            first.push(byte)

    with pytest.raises(RequestError, match="too many states"):
        answer()
    assert ord(">") in grammars.matcher(grammar).allowed()

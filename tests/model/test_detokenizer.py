"""Streams of text: whole characters, and stop texts found whichever way a text is cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from freehold.core.errors import ArgumentError, TokenizerError
from freehold.model.detokenizer import StopMatcher, StreamDecoder
from freehold.model.tokenizer import Tokenizer
from support.byte_tokenizer import MERGES, SPECIAL_TOKENS, write_byte_tokenizer

NUM_IDS = 256 + len(MERGES) + len(SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(path)
    return Tokenizer.from_directory(path)


# Lead bytes, continuations and impossible bytes, so that broken characters of every kind come up often.
byte_ids = st.sampled_from([0x41, 0x80, 0xA0, 0xBF, 0xC2, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xF8, 0xFF])
id_lists = st.lists(byte_ids | st.integers(0, NUM_IDS - 1), max_size=40)


@given(ids=id_lists, skip_special=st.booleans())
@example(ids=[0xF0, 0x9F, 0x98, 0x80], skip_special=True)
@example(ids=[0xF0, 0x9F, 0x98], skip_special=True)
@example(ids=[0xE2, NUM_IDS - 1, 0x82, 0xAC], skip_special=True)
def test_the_pieces_of_a_stream_are_the_whole(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> None:
    decoder = StreamDecoder(tokenizer, skip_special=skip_special)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special=skip_special)


@given(text=st.text())
def test_a_valid_text_never_shows_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(tokenizer)
    shown = ""
    for byte in text.encode():
        shown += decoder.push(byte)
        assert text.startswith(shown)
    assert shown == text
    assert decoder.flush() == ""


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(byte) for byte in "€a".encode()] == ["", "", "€", "a"]


def test_a_flushed_decoder_is_as_new(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    decoder.push(0xE2)
    assert decoder.flush() == "\ufffd"
    assert decoder.push(0x41) == "A"


def test_an_unknown_id_leaves_the_stream_where_it_stood(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    decoder.push(0xC3)
    with pytest.raises(TokenizerError):
        decoder.push(NUM_IDS)
    assert decoder.push(0xA9) == "é"


# -- stop texts ----------------------------------------------------------------------------------------------


def cut_at_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The plain way: the stop text that is complete first, the longest of those complete there."""
    for end in range(1, len(text) + 1):
        hit = [stop for stop in stops if text[:end].endswith(stop)]
        if hit:
            longest = max(hit, key=len)
            return text[: end - len(longest)], longest
    return text, None


letters = st.text("ab\n", max_size=24)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4)


@given(text=letters, stops=stop_lists, cuts=st.lists(st.integers(0, 24)))
@example(text="aaab", stops=["aab"], cuts=[1, 2, 3])
@example(text="aaaba\n", stops=["aaa\n"], cuts=[])
@example(text="abab\n", stops=["abab\n", "b\n"], cuts=[4])
def test_however_a_text_is_cut_the_same_stop_ends_it(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher = StopMatcher(stops)
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown, hit = "", False
    for start, end in pairwise(bounds):
        piece, hit = matcher.push(text[start:end])
        shown += piece
        if hit:
            break
    expected, stop = cut_at_stop(text, stops)
    assert shown + matcher.flush() == expected
    assert (hit, matcher.matched) == (stop is not None, stop)


@given(text=letters, stops=stop_lists)
def test_only_what_may_still_become_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    assume(cut_at_stop(text, stops)[1] is None)
    shown, _ = StopMatcher(stops).push(text)
    held = text[len(shown) :]
    assert text.startswith(shown)
    longest = max((n for s in stops for n in range(len(s)) if text.endswith(s[:n])), default=0)
    assert len(held) == longest


def test_without_stops_everything_passes_at_once() -> None:
    assert StopMatcher([]).push("abc") == ("abc", False)


def test_after_a_hit_nothing_comes() -> None:
    matcher = StopMatcher(["b"])
    assert matcher.push("abc") == ("a", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


@pytest.mark.parametrize("stops", ["stop", [""], ["a", ""], [None]])
def test_stops_that_make_no_sense_are_refused(stops: object) -> None:
    with pytest.raises(ArgumentError, match="stops"):
        StopMatcher(stops)  # type: ignore[arg-type]


def test_long_stops_cost_time_in_proportion_to_the_text() -> None:
    matcher = StopMatcher(["a" * 50_000 + "b"])
    shown = sum(len(matcher.push("a" * 10)[0]) for _ in range(20_000))
    assert shown == 150_000
    assert len(matcher.flush()) == 50_000

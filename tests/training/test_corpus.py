"""Texts: which side each is on, and windows that share no token."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.core.errors import ArgumentError
from freehold.training.corpus import Document, documents_at_hand, documents_in, windows_of


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def documents(count: int = 20, size: int = 100) -> list[Document]:
    """Every letter of every document is another one."""
    made = []
    for i in range(count):
        text = "".join(chr(1000 + i * size + j) for j in range(size))
        made.append(Document(f"document {i}", "code" if i % 2 else "prose", text))
    return made


def test_windows_share_no_token_and_take_turns():
    windows = windows_of(documents(), encode, 64, 12, seed=1)
    assert [w.kind for w in windows] == ["code", "prose"] * 6
    assert all(len(w.token_ids) == 64 for w in windows)
    tokens = [t for w in windows for t in w.token_ids]
    assert len(set(tokens)) == len(tokens)


def test_the_seed_decides():
    windows = [windows_of(documents(), encode, 64, 12, seed=s) for s in (1, 1, 2)]
    assert windows[0] == windows[1] != windows[2]
    assert windows_of(documents()[::-1], encode, 64, 12, seed=1) == windows[0]


def test_one_kind_goes_on_when_the_other_is_used_up():
    some = [d for d in documents(20) if d.kind == "code"] + documents(1)
    kinds = [w.kind for w in windows_of(some, encode, 64, 10, seed=0)]
    assert kinds.count("prose") == 1
    assert len(kinds) == 10


def test_too_little_text_is_refused():
    with pytest.raises(ArgumentError, match="no window of 5000 tokens"):
        windows_of(documents(), encode, 5000, 1, seed=0)


def test_what_is_held_out_depends_on_the_name_alone():
    sides = {d.name: d.held_out for d in documents(200)}
    assert 20 <= sum(sides.values()) <= 60
    assert sides == {d.name: d.held_out for d in documents(200, size=3)}


def test_files_are_found_by_name(tmp_path: Path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "b.py").write_text("x = 1\n" * 500)
    (tmp_path / "texts" / "deep" / "a.md").write_text("words " * 500)
    (tmp_path / "texts" / "image.png").write_bytes(b"\0" * 5000)
    (tmp_path / "texts" / "short.py").write_text("x")
    (tmp_path / "alone.txt").write_text("more words " * 500)
    found = documents_in([tmp_path / "texts", tmp_path / "alone.txt"])
    assert [(d.name, d.kind) for d in found] == [
        ("texts/b.py", "code"), ("texts/deep/a.md", "prose"), ("alone.txt", "prose")
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match="no text of at least 2000 bytes"):
        documents_in([tmp_path / "texts" / "short.py"])


def test_there_is_text_at_hand():
    found = documents_at_hand()
    assert {d.kind for d in found} == {"code", "prose"}
    assert len({d.name for d in found}) == len(found) > 300
    assert sum(len(d.text) for d in found if not d.held_out) > 4_000_000


@pytest.mark.parametrize("data", [b"caf\xe9 " * 1000, "text".encode("utf-16") * 1000])
def test_a_text_that_is_no_utf_8_is_refused_by_name(tmp_path: Path, data: bytes):
    (tmp_path / "good.txt").write_text("text " * 1000)
    (tmp_path / "latin.txt").write_bytes(data)
    with pytest.raises(ArgumentError, match=r"latin\.txt is no UTF-8 text: byte \d+ is 0x"):
        documents_in([tmp_path])

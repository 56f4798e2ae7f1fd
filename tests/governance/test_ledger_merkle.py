"""The tree is RFC 9162's: its roots and proofs are those of the definition, and no other proof is taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.governance.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_path,
    inclusion_path,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from support.ledgers import defined_path, defined_proof, defined_root

# The entries and roots that implementations of Certificate Transparency are tested with.
CT_ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def test_the_empty_tree() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root_of([]) == EMPTY_ROOT == Frontier().root()


@pytest.mark.parametrize("size", range(1, 9))
def test_known_roots(size: int) -> None:
    assert root_of(leaf_hash(entry) for entry in CT_ENTRIES[:size]).hex() == CT_ROOTS[size - 1]


def test_roots_and_paths_are_those_of_the_definition() -> None:
    for size in range(1, 70):
        entries = [str(number).encode() for number in range(size)]
        hashed = leaves(size)
        root = defined_root(entries)
        assert root_of(hashed) == root
        for index in range(size):
            path = inclusion_path(hashed, index)
            assert path == defined_path(index, entries)
            assert verify_inclusion(hashed[index], index, size, path, root)
        for old in range(1, size):
            path = consistency_path(hashed, old)
            assert path == defined_proof(old, entries)
            assert verify_consistency(old, defined_root(entries[:old]), size, root, path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_other_inclusion_is_taken(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 200))
    index = data.draw(st.integers(0, size - 1))
    hashed = leaves(size)
    root, path = root_of(hashed), inclusion_path(hashed, index)
    other = data.draw(st.integers(0, size + 3))
    if other != index:
        assert not verify_inclusion(hashed[index], other, size, path, root)
    assert not verify_inclusion(leaf_hash(b"other"), index, size, path, root)
    assert not verify_inclusion(hashed[index], index, size, [*path, leaf_hash(b"more")], root)
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        wrong = [*path]
        wrong[at] = bytes([wrong[at][0] ^ bit]) + wrong[at][1:]
        assert not verify_inclusion(hashed[index], index, size, wrong, root)
        assert not verify_inclusion(hashed[index], index, size, path[:-1], root)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_other_history_is_taken(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 200))
    old = data.draw(st.integers(1, size - 1))
    hashed = leaves(size)
    root, old_root, path = root_of(hashed), root_of(hashed[:old]), consistency_path(hashed, old)
    changed = [*hashed]
    changed[data.draw(st.integers(0, old - 1))] = leaf_hash(b"other")
    assert not verify_consistency(old, root_of(changed[:old]), size, root, path)
    # A tree whose past was changed has a proof for its own past, and none for the one that was seen.
    assert not verify_consistency(old, old_root, size, root_of(changed), consistency_path(changed, old))
    assert not verify_consistency(old, old_root, size, root, [*path, root])
    assert not verify_consistency(old, old_root, size, root, path[:-1])
    assert not verify_consistency(size, root, old, old_root, path)


def test_nothing_to_show() -> None:
    hashed = leaves(5)
    assert consistency_path(hashed, 0) == consistency_path(hashed, 5) == []
    assert verify_consistency(0, EMPTY_ROOT, 5, root_of(hashed), [])
    assert verify_consistency(5, root_of(hashed), 5, root_of(hashed), [])
    assert not verify_consistency(0, root_of(hashed), 5, root_of(hashed), [])
    with pytest.raises(IndexError):
        consistency_path(hashed, 6)
    with pytest.raises(IndexError):
        inclusion_path(hashed, 5)


def test_a_frontier_grows_like_the_whole_tree() -> None:
    frontier = Frontier()
    for size, leaf in enumerate(leaves(130), 1):
        frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size, root_of(leaves(size)))

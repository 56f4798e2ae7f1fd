"""A signed document says who signed it as long as nobody has changed anything."""

from __future__ import annotations

import copy
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.signing import PublicKey, SigningKey, canonical, signed, signer

DOCUMENT = {"name": "Ångström", "list": [1, 2.5, {"deep": None}], "flag": True}


def changes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all leaves of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path
    else:
        for key, part in items:
            yield from changes(part, (*path, key))


def test_the_signer_is_the_key_that_signed() -> None:
    key = SigningKey.generate()
    assert signer(signed(DOCUMENT, key)) == key.public


def test_the_order_of_members_does_not_matter() -> None:
    document = signed(DOCUMENT, SigningKey.generate())
    signer(dict(reversed(list(document.items()))))


def test_no_leaf_can_be_changed() -> None:
    document = signed(DOCUMENT, SigningKey.generate())
    paths = list(changes(document))
    assert len(paths) > 8
    for path in paths:
        other = copy.deepcopy(document)
        place: Any = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "other"
        with pytest.raises(SignatureError):
            signer(other)


def test_nothing_can_be_added_or_taken_away() -> None:
    document = signed(DOCUMENT, SigningKey.generate())
    with pytest.raises(SignatureError):
        signer(document | {"more": 1})
    for name in document:
        with pytest.raises(SignatureError):
            signer({key: value for key, value in document.items() if key != name})


def test_a_second_spelling_of_a_signature_is_refused() -> None:
    document = signed(DOCUMENT, SigningKey.generate())
    value = document["signature"]["value"]
    for spelling in (value + "=", value + "\n", value[:-1] + chr(ord(value[-1]) + 1)):
        with pytest.raises(SignatureError):
            signer(document | {"signature": document["signature"] | {"value": spelling}})


def test_the_key_stays_the_same_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    first = SigningKey.load_or_create(path)
    assert SigningKey.load_or_create(path).public == first.public == PublicKey.read(path)
    assert PublicKey.read(path.with_name("signing.pem.pub")) == first.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["signing.pem", "signing.pem.pub"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    SigningKey.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(GovernanceError, match="chmod 600"):
        SigningKey.load_or_create(path)


def test_something_else_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    path.write_text("not a key")
    path.chmod(0o600)
    for read in (SigningKey.load_or_create, PublicKey.read):
        with pytest.raises(GovernanceError, match=r"signing\.pem"):
            read(path)


@pytest.mark.parametrize("value", [float("nan"), 2**60, b"bytes"])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(GovernanceError, match="canonical"):
        canonical({"value": value})

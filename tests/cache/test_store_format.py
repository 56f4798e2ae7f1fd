"""FORMAT.md is enough to read a store: a reader written from it alone finds every byte."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import struct
from pathlib import Path

import pytest
import xxhash

import freehold.cache
from freehold.cache.shelf import shelf_path
from support.stored_blocks import IDENTITY, PARTS, content, keys_of, open_store, put_chain


def xxh3(content: bytes) -> bytes:
    return xxhash.xxh3_128(content).digest()


def as_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def page(nbytes: int) -> int:
    return (nbytes + 4095) // 4096 * 4096


def read_store(store: Path) -> dict[bytes, dict[str, bytes]]:
    """Every block of the only shelf, by key, as FORMAT.md says; AssertionError where the store says otherwise."""
    (shelf,) = store.glob("v1-*")
    label = json.loads((shelf / "identity.json").read_bytes())
    assert (shelf / "identity.copy.json").read_bytes() == (shelf / "identity.json").read_bytes()
    assert bytes.fromhex(label["checksum"]) == xxh3(as_json({k: v for k, v in label.items() if k != "checksum"}))
    assert (label["format"], shelf.name) == (1, f"v1-{label['digest'][:16]}")
    layout = {name: label[name] for name in ("block_tokens", "parts", "segment_bytes")}
    stamp = hashlib.sha256(bytes.fromhex(label["digest"]) + as_json(layout)).digest()
    n, p = label["block_tokens"], len(label["parts"])
    header_bytes = 136 + 8 * n + 16 * p
    record_bytes = page(header_bytes) + sum(page(nbytes) for _, nbytes in label["parts"])
    k = max(1, label["segment_bytes"] // record_bytes)
    blocks = {}
    database = sqlite3.connect(f"file:{shelf / 'catalog.sqlite'}?mode=ro", uri=True)
    for slot, header, used, pinned, seal in database.execute("SELECT slot, header, used, pinned, seal FROM blocks"):
        assert seal == xxh3(header + struct.pack("<qqq", slot, used, pinned))
        record = (shelf / f"segment-{slot // k:06d}.blocks").read_bytes()[slot % k * record_bytes :][:record_bytes]
        assert record[:header_bytes] == header
        assert header[-16:] == xxh3(header[:-16])
        assert (header[:8], header[8:40]) == (b"FHBLOCK1", stamp)
        key, parent, tokens = header[40:72], header[72:104], header[120 : 120 + 8 * n]
        created, counted_n, counted_p = struct.unpack("<qII", header[104:120])
        assert (counted_n, counted_p) == (n, p)
        assert 0 < created <= used
        assert key == hashlib.sha256((b"root" if parent == b"root".ljust(32, b"\0") else parent) + tokens).digest()
        parts, offset = {}, page(header_bytes)
        for number, (name, nbytes) in enumerate(label["parts"]):
            parts[name] = record[offset : offset + nbytes]
            assert xxh3(parts[name]) == header[120 + 8 * n + 16 * number :][:16]
            offset += page(nbytes)
        blocks[key] = parts
    database.close()
    return blocks


def test_a_reader_written_from_the_document_finds_every_byte(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, 1, 2, 3, 4)
        put_chain(store, 1, 2, 5)
        store.pin(keys_of(1, 2, 5)[2])
    blocks = read_store(tmp_path)
    assert blocks.keys() == {*keys_of(1, 2, 3, 4), *keys_of(1, 2, 5)}
    for key, parts in blocks.items():
        assert parts == {name: content(key, name, nbytes) for name, nbytes in PARTS}


def test_the_document_shows_the_table_as_it_is(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, 1)
    text = (Path(freehold.cache.__file__).parent / "FORMAT.md").read_text("utf-8")
    shown = re.search(r"    (CREATE TABLE[^)]*\))", text)
    assert shown
    database = sqlite3.connect(shelf_path(tmp_path, IDENTITY) / "catalog.sqlite")
    (sql,) = database.execute("SELECT sql FROM sqlite_schema").fetchone()
    database.close()
    assert " ".join(shown.group(1).split()) == sql


@pytest.mark.parametrize("name", ["identity.json", "catalog.sqlite", "segment-000000.blocks", "pid"])
def test_the_document_names_the_files(tmp_path: Path, name: str) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, 1)
        assert name in {path.name for path in tmp_path.rglob("*")}
    assert f" {name} " in (Path(freehold.cache.__file__).parent / "FORMAT.md").read_text("utf-8")

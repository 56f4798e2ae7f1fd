"""Checkpoint files written byte by byte, so that a test can have any number in them be a lie."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

U8, BOOL, STRING, ARRAY, U32, U64 = 0, 7, 8, 9, 4, 10
CODES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}


def safetensors_bytes(entries: dict[str, Any], data: bytes, *, header_nbytes: int | None = None) -> bytes:
    """A file with the header `entries`; `header_nbytes` replaces the header's true length.

    The header is filled up with blanks so that data begins at a multiple of 8, as writers do.
    """
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header) if header_nbytes is None else header_nbytes) + header + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_directory(directory: Path, files: dict[str, bytes], config: bytes = b'{"model_type": "test"}') -> Path:
    """A checkpoint directory with config.json and `files`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_bytes(config)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: float) -> bytes:
    return struct.pack(CODES[kind], value)


def array(kind: int, items: bytes, count: int) -> bytes:
    """The value of an ARRAY key, its claimed `count` not checked against `items`."""
    return struct.pack("<IQ", kind, count) + items


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata entry."""
    return text(name) + struct.pack("<I", kind) + value


def tensor_info(name: str | bytes, sizes: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor info; sizes with the fastest axis first, as in the file."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file; the counts are true ones unless given."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment) + data


@contextmanager
def at_most_allocated(nbytes: int) -> Iterator[None]:
    """The body holds at most `nbytes` of Python and NumPy memory at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= nbytes, f"{peak} bytes were allocated, and {nbytes} are allowed"

"""Safetensors files whose bytes lie: a named error or a sound checkpoint; never a crash, hang or flood."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import CorruptFileError, LoadError
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.safetensors_header import MAX_HEADER_BYTES
from support.checkpoints_raw import at_most_allocated, entry, safetensors_bytes, write_directory

VALID = safetensors.torch.save(
    {"weight": torch.arange(35.0).view(5, 7), "bias": torch.arange(3).bfloat16(), "none": torch.empty(0, 2)},
    metadata={"format": "pt"},
)
HEADER_NBYTES = 8 + int.from_bytes(VALID[:8], "little")
NUMBERS = [
    -1,
    0,
    1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
    2**64,
    10**40,
    1.5,
    1e308,
    True,
    None,
    "1",
    [],
    {},
]


def open_and_read(content: bytes) -> None:
    """Open a directory with this one file, and read all of it; LoadErrors are what may come of it."""
    with tempfile.TemporaryDirectory() as name, at_most_allocated(4 * 2**20):
        directory = write_directory(Path(name), {"model.safetensors": content})
        try:
            with open_checkpoint(directory) as checkpoint:
                for tensor, info in checkpoint.tensors.items():
                    assert tuple(checkpoint.tensor(tensor).shape) == info.shape
                checkpoint.digest()
        except LoadError as error:
            message = str(error)
        else:
            message = name
    assert name in message


def corrupt(content: bytes, match: str, tmp_path: Path) -> None:
    directory = write_directory(tmp_path, {"model.safetensors": content})
    with at_most_allocated(4 * 2**20), pytest.raises(CorruptFileError, match=match) as caught:
        open_checkpoint(directory)
    assert str(directory / "model.safetensors") in str(caught.value)


bounded = settings(max_examples=150, deadline=timedelta(seconds=2))


@bounded
@given(st.integers(0, len(VALID) - 1))
def test_cut_short_anywhere(nbytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = write_directory(Path(name), {"model.safetensors": VALID[:nbytes]})
        with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
            open_checkpoint(directory)


@bounded
@given(st.integers(0, HEADER_NBYTES - 1), st.integers(1, 255))
def test_flipped_header_byte(position: int, flip: int) -> None:
    content = bytearray(VALID)
    content[position] ^= flip
    open_and_read(bytes(content))


@bounded
@given(st.binary(max_size=200))
def test_random_bytes(content: bytes) -> None:
    open_and_read(content)
    open_and_read(struct.pack("<Q", len(content)) + content)


@bounded
@given(
    st.sampled_from(["F32", "BF16", "U8", "BOOL", "F4", "F6_E2M3", "X", 3]),
    st.lists(st.sampled_from(NUMBERS) | st.integers(0, 8), max_size=4) | st.sampled_from(NUMBERS),
    st.lists(st.sampled_from(NUMBERS) | st.integers(0, 64), max_size=3) | st.sampled_from(NUMBERS),
)
def test_hostile_numbers(dtype: Any, shape: Any, offsets: Any) -> None:
    open_and_read(safetensors_bytes({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, bytes(32)))


def test_header_length_beyond_the_file(tmp_path: Path) -> None:
    corrupt(safetensors_bytes({}, b"", header_nbytes=9), "header of 9 bytes", tmp_path)


@pytest.mark.parametrize("nbytes", [MAX_HEADER_BYTES + 1, 2**35, 2**64 - 1])
def test_header_length_beyond_the_limit(tmp_path: Path, nbytes: int) -> None:
    """Also in a file so long that the header would fit."""
    directory = write_directory(tmp_path, {"model.safetensors": safetensors_bytes({}, b"", header_nbytes=nbytes)})
    os.truncate(directory / "model.safetensors", 2**36)
    with (
        at_most_allocated(4 * 2**20),
        pytest.raises(CorruptFileError, match=f"header of {nbytes} bytes; at most {MAX_HEADER_BYTES} are read"),
    ):
        open_checkpoint(directory)


@pytest.mark.parametrize("header", [b"[1]", b"", b' {"a": 1}', b"null", b"\xef\xbb\xbf{}"])
def test_header_that_is_no_object(tmp_path: Path, header: bytes) -> None:
    corrupt(struct.pack("<Q", len(header)) + header, "header begins with", tmp_path)


def raw_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def test_header_nested_without_end(tmp_path: Path) -> None:
    corrupt(raw_header(b'{"x":' + b"[" * 200_000), "nested too deeply|not valid JSON", tmp_path)


def test_header_with_an_endless_number(tmp_path: Path) -> None:
    corrupt(raw_header(b'{"x":' + b"9" * 100_000 + b"}"), "header", tmp_path)


def test_header_that_is_not_utf8(tmp_path: Path) -> None:
    corrupt(raw_header(b'{"\xff": 1}'), "not valid JSON", tmp_path)


def test_name_that_is_not_unicode(tmp_path: Path) -> None:
    corrupt(raw_header(json.dumps({"\ud800": entry("U8", [0], 0, 0)}).encode()), "not valid Unicode", tmp_path)


def test_name_without_end(tmp_path: Path) -> None:
    """Names are compared with lists of modules, component by component."""
    longest = json.dumps({"n." * 512: entry("U8", [0], 0, 0)}).encode()
    open_checkpoint(write_directory(tmp_path, {"model.safetensors": raw_header(longest)})).close()
    longer = json.dumps({"n." * 512 + "n": entry("U8", [0], 0, 0)}).encode()
    corrupt(raw_header(longer), "its name has 1025 bytes; at most 1024 are read", tmp_path)


def test_name_twice(tmp_path: Path) -> None:
    one = json.dumps(entry("U8", [1], 0, 1))
    corrupt(raw_header(f'{{"x": {one}, "x": {one}}}'.encode()) + b"1", "'x' appears twice", tmp_path)


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    directory = write_directory(tmp_path, {"model.safetensors": safetensors_bytes({"\x1b[2J" + "n" * 10_000: 1}, b"")})
    with pytest.raises(CorruptFileError) as caught:
        open_checkpoint(directory)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_tensors_that_overlap(tmp_path: Path) -> None:
    entries = {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}
    corrupt(safetensors_bytes(entries, bytes(6)), "'b' begins at data offset 2 and overlaps tensor 'a'", tmp_path)


def test_gap_between_tensors(tmp_path: Path) -> None:
    entries = {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)}
    corrupt(safetensors_bytes(entries, bytes(9)), "'b' begins at data offset 5 and leaves a gap", tmp_path)


def test_bytes_before_the_first_tensor(tmp_path: Path) -> None:
    corrupt(safetensors_bytes({"a": entry("U8", [4], 1, 5)}, bytes(5)), "leaves a gap after the header", tmp_path)


def test_data_cut_short(tmp_path: Path) -> None:
    corrupt(safetensors_bytes({"a": entry("U8", [4], 0, 4)}, bytes(3)), "cut short", tmp_path)


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    corrupt(safetensors_bytes({"a": entry("U8", [4], 0, 4)}, bytes(5)), "belong to no tensor", tmp_path)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (entry("F32", [2, 3], 0, 20), r"F32 of shape \[2, 3\] needs 24 bytes"),
        (entry("F4", [3], 0, 1), "needs 1.5 bytes"),
        (entry("F33", [2], 0, 8), "'F33', which the format does not know"),
        (entry("F32", [-2, -3], 0, 24), r"shape is \[-2, -3\]"),
        (entry("F32", [0, 2**40, 2**40], 0, 0), "product is below"),
        (entry("U8", [1] * 17, 0, 1), "at most 16"),
        (entry("U8", [True], 0, 1), r"shape is \[True\]"),
        (entry("U8", [1.0], 0, 1), r"shape is \[1\.0\]"),
        (entry("U8", [1], False, 1), r"data_offsets are \[False, 1\]"),
        (entry("U8", [2], 4, 2), r"data_offsets are \[4, 2\]"),
        (entry("U8", [2], -2, 0), "data_offsets"),
        ({"dtype": "U8", "shape": [2]}, "must have dtype, shape and data_offsets"),
        ({**entry("U8", [2], 0, 2), "code": "x"}, "alone"),
        ([], "must have dtype"),
    ],
)
def test_entry_that_contradicts_itself(tmp_path: Path, bad: Any, match: str) -> None:
    corrupt(safetensors_bytes({"x": bad}, bytes(24)), f"tensor 'x': .*{match}", tmp_path)


def test_metadata_must_be_texts(tmp_path: Path) -> None:
    corrupt(safetensors_bytes({"__metadata__": {"a": 1}}, b""), "__metadata__", tmp_path)


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff\xfe{}", b"[" * 100_000])
def test_config_that_is_no_object(tmp_path: Path, config: bytes) -> None:
    directory = write_directory(tmp_path, {"model.safetensors": VALID}, config)
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        open_checkpoint(directory)


def test_config_without_end(tmp_path: Path) -> None:
    directory = write_directory(tmp_path, {"model.safetensors": VALID}, b"{" + b" " * (17 * 2**20) + b"}")
    with pytest.raises(CorruptFileError, match="at most 16777216 are read"):
        open_checkpoint(directory)

"""GGUF files whose bytes lie: a named error, or a sound checkpoint; never a crash, a hang, or a flood."""

from __future__ import annotations

import os
import struct
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import CorruptFileError, LoadError
from freehold.loading import gguf_header
from freehold.loading.checkpoint import open_checkpoint
from support.checkpoints_raw import (
    ARRAY,
    BOOL,
    STRING,
    U8,
    U32,
    array,
    at_most_allocated,
    gguf_bytes,
    key,
    scalar,
    tensor_info,
    text,
)

Kind = gguf.GGMLQuantizationType
KEYS = [
    key("general.architecture", STRING, text("llama")),
    key("general.alignment", U32, scalar(U32, 32)),
    key("tokens", ARRAY, array(STRING, text("a") + text("bc"), 2)),
    key("scores", ARRAY, array(6, struct.pack("<2f", 1, 2), 2)),
    key("flag", BOOL, b"\1"),
]
INFOS = [tensor_info("w", [32, 3], Kind.Q8_0, 0), tensor_info("b", [5], Kind.F32, 128)]
DATA = np.random.default_rng(0).integers(0, 60, 148, dtype=np.uint8).tobytes()
VALID = gguf_bytes(KEYS, INFOS, DATA)
HEADER_NBYTES = len(VALID) - len(DATA)
NUMBERS = [0, 1, 2, 31, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1]

bounded = settings(max_examples=200, deadline=timedelta(seconds=2))


def open_and_read(content: bytes) -> None:
    """Open this file and read all of it; LoadErrors that name it are what may come of it."""
    with tempfile.TemporaryDirectory() as name, at_most_allocated(4 * 2**20):
        path = Path(name) / "m.gguf"
        path.write_bytes(content)
        try:
            with open_checkpoint(path) as checkpoint:
                for tensor, info in checkpoint.tensors.items():
                    if info.dtype not in ("Q8_1", "Q8_K", "Q1_0"):
                        assert tuple(checkpoint.tensor(tensor).shape) == info.shape
                checkpoint.digest()
        except LoadError as error:
            message = str(error)
        else:
            message = name
    assert name in message


def refused(
    tmp_path: Path,
    content: bytes,
    match: str,
    kind: type[LoadError] = CorruptFileError,
    size: int | None = None,
) -> None:
    """Opening fails with this message, at once and without memory; `size` lengthens the file with a hole."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    start = time.monotonic()
    with at_most_allocated(4 * 2**20), pytest.raises(kind, match=match) as caught:
        open_checkpoint(path)
    assert time.monotonic() - start < 2
    assert str(path) in str(caught.value)


def test_the_valid_file_is_valid(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(VALID)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert list(checkpoint.tensors) == ["w", "b"]
        assert len(checkpoint.config) == len(KEYS)


@bounded
@given(st.integers(0, len(VALID) - 1))
def test_cut_short_anywhere(nbytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.gguf"
        path.write_bytes(VALID[:nbytes])
        with pytest.raises(CorruptFileError, match=r"m\.gguf"):
            open_checkpoint(path)


@bounded
@given(st.integers(0, HEADER_NBYTES - 1), st.integers(1, 255))
def test_flipped_header_byte(position: int, flip: int) -> None:
    content = bytearray(VALID)
    content[position] ^= flip
    open_and_read(bytes(content))


@bounded
@given(st.integers(0, HEADER_NBYTES - 8), st.sampled_from(NUMBERS), st.sampled_from([4, 8]))
def test_hostile_number_anywhere(position: int, number: int, nbytes: int) -> None:
    raw = (number % 2 ** (8 * nbytes)).to_bytes(nbytes, "little")
    open_and_read(VALID[:position] + raw + VALID[position + nbytes :])


@bounded
@given(st.binary(max_size=200), st.integers(0, 4), st.integers(0, 4))
def test_random_bytes(content: bytes, num_tensors: int, num_keys: int) -> None:
    open_and_read(content)
    open_and_read(b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + content)


@bounded
@given(
    st.lists(st.sampled_from(NUMBERS) | st.integers(0, 64), max_size=6),
    st.sampled_from([*Kind, 4, 5, 99]),
    st.sampled_from([*NUMBERS, 32, 64]),
)
def test_hostile_tensor_info(sizes: list[int], kind: int, offset: int) -> None:
    open_and_read(gguf_bytes((), [tensor_info("x", sizes, kind, offset)], bytes(4096)))


def test_other_magic(tmp_path: Path) -> None:
    refused(tmp_path, gguf_bytes(magic=b"GGML"), "b'GGML'")


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
def test_other_version(tmp_path: Path, version: int) -> None:
    refused(tmp_path, gguf_bytes(version=version), f"GGUF version {version}", LoadError)


def test_big_endian(tmp_path: Path) -> None:
    refused(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian", LoadError)


@pytest.mark.parametrize("count", [gguf_header.MAX_TENSORS + 1, 2**63, 2**64 - 1])
def test_tensor_count_beyond_the_limit(tmp_path: Path, count: int) -> None:
    refused(tmp_path, gguf_bytes(num_tensors=count), f"claims {count} tensors")


@pytest.mark.parametrize("count", [gguf_header.MAX_KEYS + 1, 2**63, 2**64 - 1])
def test_key_count_beyond_the_limit(tmp_path: Path, count: int) -> None:
    refused(tmp_path, gguf_bytes(num_keys=count), f"claims {count} metadata keys")


def test_counts_beyond_the_file(tmp_path: Path) -> None:
    refused(tmp_path, gguf_bytes(num_keys=5), "the type of metadata '' at byte 32 needs 4 bytes")
    refused(tmp_path, gguf_bytes(num_tensors=5), "the number of axes of tensor '' at byte 32 needs 4 bytes")


@pytest.mark.parametrize("length", [100, 2**40, 2**64 - 1])
def test_string_beyond_the_file(tmp_path: Path, length: int) -> None:
    value = struct.pack("<Q", length) + b"abc"
    refused(tmp_path, gguf_bytes([key("k", STRING, value)]), f"(claims|needs) {length} bytes")


@pytest.mark.parametrize("size", [None, 2**36])
def test_element_beyond_the_file(tmp_path: Path, size: int | None) -> None:
    """Also in a file so long that the element would fit: then the limit on headers stops it."""
    value = array(STRING, text("a") + struct.pack("<Q", 2**35) + b"b", 2)
    refused(tmp_path, gguf_bytes([key("k", ARRAY, value)]), f"element 1 of metadata 'k' claims {2**35}", size=size)


@pytest.mark.parametrize("kind", [STRING, U8, 12])
@pytest.mark.parametrize("count", [1000, gguf_header.MAX_ARRAY_ELEMENTS + 1, 2**62, 2**64 - 1])
def test_array_beyond_the_file(tmp_path: Path, kind: int, count: int) -> None:
    refused(tmp_path, gguf_bytes([key("k", ARRAY, array(kind, b"\0" * 16, count))]), "metadata 'k'")


def test_arrays_that_are_small_one_by_one(tmp_path: Path) -> None:
    half = gguf_header.MAX_ARRAY_ELEMENTS // 2 + 1
    keys = [key(f"k{number}", ARRAY, array(U8, b"", half)) for number in range(2)]
    content = gguf_bytes([keys[0] + bytes(half), keys[1]], num_keys=2)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"metadata 'k1' is an array of .* are read from all arrays"):
        open_checkpoint(tmp_path / "m.gguf")


def test_array_of_arrays(tmp_path: Path) -> None:
    nested = array(ARRAY, array(U8, b"a", 1), 1)
    refused(tmp_path, gguf_bytes([key("k", ARRAY, nested)]), "array of arrays")


@pytest.mark.parametrize("value", [key("k", 13, b""), key("k", ARRAY, array(13, b"", 0)), key("k", 2**32 - 1, b"")])
def test_unknown_value_type(tmp_path: Path, value: bytes) -> None:
    refused(tmp_path, gguf_bytes([value]), "value type (13|4294967295), which the format does not know")


@pytest.mark.parametrize("value", [key("k", BOOL, b"\2"), key("k", ARRAY, array(BOOL, b"\0\xff", 2))])
def test_bool_that_is_neither(tmp_path: Path, value: bytes) -> None:
    refused(tmp_path, gguf_bytes([value]), "bool with the value (2|255)")


def test_names_twice(tmp_path: Path) -> None:
    one = key("k", BOOL, b"\1")
    refused(tmp_path, gguf_bytes([one, one]), "metadata key 'k' appears twice")
    info = tensor_info("x", [4], Kind.I8, 0)
    refused(tmp_path, gguf_bytes((), [info, info], bytes(64)), "tensor 'x' appears twice")


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    refused(tmp_path, gguf_bytes([key(b"\xff", BOOL, b"\1")]), "not valid UTF-8")
    refused(tmp_path, gguf_bytes([key("k", ARRAY, array(STRING, text("a") + text(b"\xc3"), 2))]), "element 1 of")
    refused(tmp_path, gguf_bytes((), [tensor_info(b"\x80", [4], Kind.I8, 0)], bytes(4)), "not valid UTF-8")


def test_long_names(tmp_path: Path) -> None:
    refused(tmp_path, gguf_bytes([key("k" * 2**16, BOOL, b"\1")]), "claims 65536 bytes")
    refused(tmp_path, gguf_bytes((), [tensor_info("x" * 1025, [4], Kind.I8, 0)], bytes(4)), "claims 1025 bytes")


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    info = tensor_info("\x1b[2J" + "x" * 900, [4], Kind.I8, 0)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes((), [info]))
    with pytest.raises(CorruptFileError) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ([1, 1, 1, 1, 1], "has 5 axes"),
        ([0], r"has the sizes \[0\]"),
        ([4, 0, 2], r"has the sizes \[4, 0, 2\]"),
        ([2**63, 2], "product below"),
        ([2**20, 2**20, 2**20, 2**20], "product below"),
        ([2**40], "takes bytes"),
        ([33, 4], "rows of 33 elements; Q8_0 comes in blocks of 32"),
        ([], "rows of 1 elements"),
    ],
    ids=str,
)
def test_shapes(tmp_path: Path, sizes: list[int], match: str) -> None:
    refused(tmp_path, gguf_bytes((), [tensor_info("x", sizes, Kind.Q8_0, 0)], bytes(64)), f"tensor 'x' .*{match}")


def test_axes_are_not_counted_before_they_are_checked(tmp_path: Path) -> None:
    info = text("x") + struct.pack("<I", 2**32 - 1)
    refused(tmp_path, gguf_bytes((), [info], bytes(64)), "has 4294967295 axes")


@pytest.mark.parametrize("kind", [4, 5, 31, 99, 2**32 - 1])
def test_unknown_tensor_type(tmp_path: Path, kind: int) -> None:
    refused(tmp_path, gguf_bytes((), [tensor_info("x", [32], kind, 0)], bytes(64)), f"ggml type {kind}", LoadError)


@pytest.mark.parametrize("offset", [1, 16, 2**63 + 1])
def test_offset_off_the_alignment(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, gguf_bytes((), [tensor_info("x", [4], Kind.I8, offset)], bytes(64)), "no multiple of 32")


@pytest.mark.parametrize("offset", [64, 2**40, 2**64 - 32])
def test_offset_beyond_the_file(tmp_path: Path, offset: int) -> None:
    refused(
        tmp_path,
        gguf_bytes((), [tensor_info("x", [4], Kind.I8, offset)], bytes(64)),
        "tensor 'x' .*takes bytes",
    )


def test_tensors_that_overlap(tmp_path: Path) -> None:
    infos = [tensor_info("a", [40], Kind.I8, 0), tensor_info("b", [4], Kind.I8, 32)]
    refused(tmp_path, gguf_bytes((), infos, bytes(64)), "'b' begins .* overlaps tensor 'a'")
    infos = [tensor_info("a", [4], Kind.I8, 0), tensor_info("b", [4], Kind.I8, 0)]
    refused(tmp_path, gguf_bytes((), infos, bytes(64)), "overlaps")


@pytest.mark.parametrize("alignment", [0, 1, 4, 24, 2**31, 2**32 - 1])
def test_alignment_that_is_none(tmp_path: Path, alignment: int) -> None:
    keys = [key("general.alignment", U32, scalar(U32, alignment))]
    refused(tmp_path, gguf_bytes(keys), rf"general\.alignment is {alignment}")


def test_alignment_of_another_type(tmp_path: Path) -> None:
    refused(tmp_path, gguf_bytes([key("general.alignment", STRING, text("32"))]), r"general\.alignment is '32'")


def test_header_beyond_the_limit(tmp_path: Path) -> None:
    """A string that the file could hold and no header may."""
    value = struct.pack("<Q", gguf_header.MAX_HEADER_BYTES)
    refused(tmp_path, gguf_bytes([key("k", STRING, value)]), "the longest header allowed", size=2**36)


def test_a_tensor_beyond_memory_is_named(tmp_path: Path) -> None:
    """A hole that would be four times the machine's RAM as float32."""
    elements = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    nbytes = elements // 32 * 34
    content = gguf_bytes((), [tensor_info("x", [elements], Kind.Q8_0, 0)])
    (tmp_path / "m.gguf").write_bytes(content)
    os.truncate(tmp_path / "m.gguf", len(content) + nbytes)
    with (
        open_checkpoint(tmp_path / "m.gguf") as checkpoint,
        pytest.raises(LoadError, match=r"'x' takes .* no memory"),
    ):
        checkpoint.tensor("x")

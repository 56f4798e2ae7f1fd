"""The header of a GGUF file, read in one pass and with suspicion.

A file is: magic, version, tensor count, metadata count; metadata, key -> typed value; tensor infos (name,
sizes with the fastest axis first, type, offset); padding to `general.alignment`; the tensors' bytes. All
numbers are little-endian.

`gguf.GGUFReader` reads the same, but keeps one NumPy array for each token of a tokenizer, which takes
seconds, and trusts every count and length in the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from freehold.core.errors import CorruptFileError, LoadError
from freehold.loading.checkpoint import Extent, TensorInfo
from freehold.loading.mapping import MappedFile
from freehold.loading.quoting import quoted

MAX_HEADER_BYTES = 256 * 2**20
"""Longest header; those of published models, tokenizer included, stay below 20 MiB."""
MAX_ARRAY_ELEMENTS = 2**23
"""Most array elements in all metadata together; a tokenizer of 200,000 tokens has about 600,000."""
MAX_KEYS = 2**16
MAX_TENSORS = 2**18
MAX_KEY_BYTES = 2**16 - 1
MAX_NAME_BYTES = 1024
MAX_AXES = 4
MAX_ALIGNMENT = 2**20
DEFAULT_ALIGNMENT = 32

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    number: np.dtype(code)
    for number, code in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
        _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """nbytes: length of the header, without the padding after it. metadata: key -> Python value.

    places: key -> where its value begins and ends, its type included. alignment: tensors begin at its multiples.
    tensors: in the order of the file's tensor infos.
    """

    nbytes: int
    metadata: dict[str, Any]
    places: dict[str, tuple[int, int]]
    alignment: int
    tensors: dict[str, tuple[TensorInfo, Extent]]


class _Cursor:
    """A place in the header that moves forward and never past its end."""

    __slots__ = ("array_elements", "buffer", "end", "file", "position")

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.buffer = file.buffer
        self.end = min(file.nbytes, MAX_HEADER_BYTES)
        self.position = 0
        self.array_elements = 0

    def fail(self, message: str) -> CorruptFileError:
        return CorruptFileError(f"{self.file.path}: {message}")

    def need(self, nbytes: int, what: str) -> None:
        """Refuse to go on unless `nbytes` more bytes are there."""
        if nbytes > self.end - self.position:
            bound = "the file ends" if self.end == self.file.nbytes else "the longest header allowed ends"
            raise self.fail(
                f"{what} at byte {self.position} needs {nbytes} bytes, and {bound} at byte {self.end};"
                " the file is cut short or corrupt"
            )

    def take(self, nbytes: int, what: str) -> bytes:
        self.need(nbytes, what)
        start = self.position
        self.position += nbytes
        return self.buffer[start : self.position]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def text(self, what: str, longest: int = MAX_HEADER_BYTES) -> str:
        length = self.u64(f"the length of {what}")
        if length > longest:
            raise self.fail(f"{what} claims {length} bytes; at most {longest} are read")
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not valid UTF-8: {error}") from error

    def texts(self, count: int, what: str) -> list[str]:
        """`count` texts. The loop is `text` written out, since tokenizers have hundreds of thousands."""
        buffer, end, position = self.buffer, self.end, self.position
        length_at: Callable[..., tuple[int]] = _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                (length,) = length_at(buffer, position)
                position += 8
                if length > end - position:
                    raise self.fail(
                        f"element {len(found)} of {what} claims {length} bytes at byte {position}, and"
                        f" at most {end - position} are left"
                    )
                found.append(str(buffer[position : position + length], "utf-8"))
                position += length
        except struct.error as error:
            raise self.fail(f"{what} is cut short after {len(found)} of {count} elements") from error
        except UnicodeDecodeError as error:
            raise self.fail(f"element {len(found)} of {what} is not valid UTF-8: {error}") from error
        self.position = position
        return found

    def scalars(self, kind: int, count: int, what: str) -> list[Any]:
        dtype = _SCALARS[kind]
        raw = np.frombuffer(self.take(count * dtype.itemsize, what), dtype=dtype)
        if kind == _BOOL:
            if raw.size and raw.max() > 1:
                raise self.fail(f"{what} is a bool with the value {raw.max()}; it must be 0 or 1")
            raw = raw.astype(np.bool_)
        values: list[Any] = raw.tolist()
        return values


def read_header(file: MappedFile, index: int) -> GgufHeader:
    """Read and check everything before the tensors' bytes.

    index: the file's place in the checkpoint, which the extents repeat. Raises CorruptFileError, naming the
    file, the thing and its value, for whatever does not hold, and LoadError for files that may be sound but
    cannot be read here: other versions, big-endian ones, tensor types that the gguf package does not know.
    """
    cursor = _Cursor(file)
    magic = cursor.take(4, "the magic number")
    if magic != b"GGUF":
        raise cursor.fail(f"begins with {magic!r} and not with b'GGUF'; it is not a GGUF file")
    version = cursor.u32("the version")
    if version not in (2, 3):
        if version in (2 << 24, 3 << 24):
            raise LoadError(f"{file.path}: is a big-endian GGUF file; only little-endian ones are read")
        raise LoadError(f"{file.path}: has GGUF version {version}; versions 2 and 3 are read. Convert the model again")
    tensor_count = cursor.u64("the tensor count")
    key_count = cursor.u64("the metadata count")
    if tensor_count > MAX_TENSORS:
        raise cursor.fail(f"claims {tensor_count} tensors; at most {MAX_TENSORS} are read")
    if key_count > MAX_KEYS:
        raise cursor.fail(f"claims {key_count} metadata keys; at most {MAX_KEYS} are read")
    metadata, places = _metadata(cursor, key_count)
    tensors = _tensor_infos(cursor, tensor_count)
    nbytes = cursor.position
    alignment = _alignment(cursor, metadata)
    data_start = -(-nbytes // alignment) * alignment
    placed: dict[str, tuple[TensorInfo, Extent]] = {}
    for name, (info, offset) in tensors.items():
        if offset % alignment:
            raise cursor.fail(f"tensor {quoted(name)} has offset {offset}, no multiple of {alignment}")
        placed[name] = (info, Extent(index, data_start + offset, stored_nbytes(info)))
    _check_bounds(cursor, placed)
    return GgufHeader(nbytes, metadata, places, alignment, placed)


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Key -> value, and key -> its place."""
    metadata: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for number in range(count):
        key = cursor.text(f"metadata key {number}", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"metadata key {quoted(key)} appears twice")
        start = cursor.position
        metadata[key] = _value(cursor, f"metadata {quoted(key)}")
        places[key] = start, cursor.position
    return metadata, places


def _value(cursor: _Cursor, what: str) -> Any:
    kind = cursor.u32(f"the type of {what}")
    if kind == _STRING:
        return cursor.text(what)
    if kind in _SCALARS:
        return cursor.scalars(kind, 1, what)[0]
    if kind != _ARRAY:
        raise cursor.fail(f"{what} has value type {kind}, which the format does not know")
    kind = cursor.u32(f"the element type of {what}")
    count = cursor.u64(f"the length of {what}")
    cursor.array_elements += count
    if cursor.array_elements > MAX_ARRAY_ELEMENTS:
        raise cursor.fail(
            f"{what} is an array of {count} elements; at most {MAX_ARRAY_ELEMENTS} are read from all arrays"
        )
    if kind == _STRING:
        return cursor.texts(count, what)
    if kind in _SCALARS:
        return cursor.scalars(kind, count, what)
    if kind == _ARRAY:
        raise cursor.fail(f"{what} is an array of arrays, which no model uses and is not read")
    raise cursor.fail(f"{what} is an array of value type {kind}, which the format does not know")


def _tensor_infos(cursor: _Cursor, count: int) -> dict[str, tuple[TensorInfo, int]]:
    """Name -> (info, offset within the data), in the file's order."""
    tensors: dict[str, tuple[TensorInfo, int]] = {}
    for number in range(count):
        name = cursor.text(f"the name of tensor {number}", MAX_NAME_BYTES)
        what = f"tensor {quoted(name)}"
        if name in tensors:
            raise cursor.fail(f"{what} appears twice")
        num_axes = cursor.u32(f"the number of axes of {what}")
        if num_axes > MAX_AXES:
            raise cursor.fail(f"{what} has {num_axes} axes; at most {MAX_AXES} are allowed")
        sizes = [cursor.u64(f"the shape of {what}") for _ in range(num_axes)]
        if 0 in sizes or math.prod(sizes) >= 2**60:
            raise cursor.fail(f"{what} has the sizes {sizes}; they must be positive and their product below 2**60")
        kind = cursor.u32(f"the type of {what}")
        try:
            dtype = GGMLQuantizationType(kind)
            block, _ = GGML_QUANT_SIZES[dtype]
        except (ValueError, KeyError) as error:
            raise LoadError(
                f"{cursor.file.path}: {what} has ggml type {kind}, which the installed gguf package does not"
                " know. Update gguf, or use another quantisation of the model"
            ) from error
        if (sizes[0] if sizes else 1) % block:
            raise cursor.fail(
                f"{what} has rows of {(sizes or [1])[0]} elements; {dtype.name} comes in blocks of {block}"
            )
        tensors[name] = (TensorInfo(tuple(reversed(sizes)), dtype.name), cursor.u64(f"the offset of {what}"))
    return tensors


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    sound = type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
    if not sound:
        raise cursor.fail(
            f"general.alignment is {quoted(alignment)}; it must be a power of two from 8 to {MAX_ALIGNMENT}"
        )
    return int(alignment)


def stored_nbytes(info: TensorInfo) -> int:
    """Bytes that a tensor takes in the file, without padding."""
    block, block_nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[info.dtype]]
    return info.numel // block * block_nbytes


def _check_bounds(cursor: _Cursor, tensors: dict[str, tuple[TensorInfo, Extent]]) -> None:
    """No tensor reaches beyond the file or into another."""
    end, previous = 0, ""
    for name, (info, extent) in sorted(tensors.items(), key=lambda item: item[1][1].offset):
        if extent.offset + extent.nbytes > cursor.file.nbytes:
            raise cursor.fail(
                f"tensor {quoted(name)} ({info.dtype}, shape {list(info.shape)}) takes bytes {extent.offset}"
                f" to {extent.offset + extent.nbytes}, and the file has {cursor.file.nbytes}; fetch it again"
            )
        if extent.offset < end:
            raise cursor.fail(
                f"tensor {quoted(name)} begins at byte {extent.offset} and overlaps tensor"
                f" {quoted(previous)}, which ends at {end}"
            )
        end, previous = extent.offset + extent.nbytes, name

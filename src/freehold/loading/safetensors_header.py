"""The header of a safetensors file, read with suspicion.

A file is: 8 bytes, little-endian, the header's length; the header, a JSON object of name ->
{dtype, shape, data_offsets}; then the tensors' bytes, which the offsets must cover exactly, without gap or
overlap, to the end of the file.
"""

from __future__ import annotations

import math
from typing import Any

from freehold.core.errors import CorruptFileError
from freehold.loading.checkpoint import Extent, TensorInfo
from freehold.loading.json_object import parse_json_object
from freehold.loading.mapping import MappedFile
from freehold.loading.quoting import quoted

MAX_HEADER_BYTES = 16 * 2**20
"""Longest header that is parsed: about 130,000 tensors. MiniMax-M3 in a single file would need 3 MiB."""

MAX_NAME_BYTES = 1024
"""Longest name of a tensor, as in GGUF."""

MAX_AXES = 16
"""Most axes of a tensor."""

BITS_PER_ELEMENT = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Every dtype of the format and its width."""


def read_header(file: MappedFile, index: int) -> tuple[int, dict[str, tuple[TensorInfo, Extent]]]:
    """Bytes before the first tensor, and the file's tensors in the order of their data.

    index: the file's place in the checkpoint, which the extents repeat. Raises CorruptFileError, naming the
    file, the thing and its value, for whatever does not hold.
    """
    header = _header_bytes(file)
    data_start = 8 + len(header)
    entries = parse_json_object(header, f"{file.path}: header")
    _check_metadata(file, entries.pop("__metadata__", None))
    tensors: dict[str, tuple[TensorInfo, Extent]] = {}
    for name, entry in entries.items():
        info, begin, end = _entry(file, name, entry)
        tensors[name] = (info, Extent(index, data_start + begin, end - begin))
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1][1].offset, item[1][1].nbytes)))
    position, previous = data_start, "the header"
    for name, (_, extent) in tensors.items():
        if extent.offset != position:
            fault = "overlaps" if extent.offset < position else "leaves a gap after"
            raise CorruptFileError(
                f"{file.path}: tensor {quoted(name)} begins at data offset {extent.offset - data_start}"
                f" and {fault} {previous}, which ends at {position - data_start}"
            )
        position, previous = extent.offset + extent.nbytes, f"tensor {quoted(name)}"
    if position != file.nbytes:
        short = "is cut short" if position > file.nbytes else "has bytes that belong to no tensor"
        raise CorruptFileError(
            f"{file.path}: {short}: the header describes {position} bytes, and the file has {file.nbytes};"
            " fetch it again"
        )
    return data_start, tensors


def _header_bytes(file: MappedFile) -> bytes:
    if file.nbytes < 8:
        raise CorruptFileError(f"{file.path}: has {file.nbytes} bytes, too few for a header; fetch it again")
    nbytes = int.from_bytes(file.buffer[:8], "little")
    if nbytes > MAX_HEADER_BYTES:
        raise CorruptFileError(
            f"{file.path}: claims a header of {nbytes} bytes; at most {MAX_HEADER_BYTES} are read."
            " It is probably not a safetensors file"
        )
    if nbytes > file.nbytes - 8:
        raise CorruptFileError(
            f"{file.path}: claims a header of {nbytes} bytes, and the file has {file.nbytes}; fetch it again"
        )
    header = file.buffer[8 : 8 + nbytes]
    if not header.startswith(b"{"):
        raise CorruptFileError(f"{file.path}: its header begins with {header[:8]!r} and not with a JSON object")
    return header


def _check_metadata(file: MappedFile, metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFileError(f"{file.path}: its __metadata__ must map texts to texts, and is {quoted(metadata)}")


def _entry(file: MappedFile, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """The checked entry of one tensor: what it is, and the half-open range of its bytes in the data."""
    where = f"{file.path}: tensor {quoted(name)}"
    try:
        nbytes = len(name.encode())
    except UnicodeEncodeError as error:
        raise CorruptFileError(f"{where}: its name is not valid Unicode") from error
    if nbytes > MAX_NAME_BYTES:
        raise CorruptFileError(f"{where}: its name has {nbytes} bytes; at most {MAX_NAME_BYTES} are read")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFileError(f"{where}: must have dtype, shape and data_offsets alone, and is {quoted(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_PER_ELEMENT:
        raise CorruptFileError(f"{where}: its dtype is {quoted(dtype)}, which the format does not know")
    if not _sizes(shape) or len(shape) > MAX_AXES or math.prod(max(size, 1) for size in shape) >= 2**60:
        raise CorruptFileError(
            f"{where}: its shape is {quoted(shape)}; it must be a list of at most {MAX_AXES} non-negative"
            " integers whose product is below 2**60"
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFileError(f"{where}: its data_offsets are {quoted(offsets)}; they must be [begin, end]")
    bits = math.prod(shape) * BITS_PER_ELEMENT[dtype]
    begin, end = offsets
    if bits != 8 * (end - begin):
        raise CorruptFileError(
            f"{where}: {dtype} of shape {shape} needs {bits / 8:g} bytes, and its data_offsets {offsets} give"
            f" {end - begin}"
        )
    return TensorInfo(tuple(shape), dtype), begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**60 for size in value)

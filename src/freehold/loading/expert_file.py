"""A file of experts, each a few long stretches, so that one can be read into memory as it is computed with.

A region holds one matrix of all experts of a layer, each at a multiple of 4096 bytes for direct reads. The regions are
listed in a JSON file beside it, which is written last: without it the file is not whole and is made anew. Until it is
whole it has another name, so that a file that is in use is never written over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from freehold.core.axes import ceil_div
from freehold.core.errors import CorruptFileError, LoadError
from freehold.loading.claim import claimed, is_at
from freehold.loading.json_object import read_json_object
from freehold.loading.quoting import quoted

_Value = TypeVar("_Value")

ALIGNMENT = 4096
_VERSION = 2
_MOST = 2**63 - 1
WAY_OUT = "remove it, and the experts are written anew"
"""What to do about a file or a listing that is damaged."""


@dataclass(frozen=True, slots=True)
class Region:
    """One matrix of all experts of a layer. form: what its reader needs to know of it, as JSON has it.

    nbytes: of one expert, a multiple of 4096.
    """

    layer: int
    part: str
    form: dict[str, Any]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing. where: the file, and the object's place in it."""

    values: dict[str, Any]
    where: str

    def fail(self, name: str, wanted: str) -> CorruptFileError:
        """What is wrong with a field."""
        said = f"is {quoted(self.values[name])}" if name in self.values else "is missing"
        return CorruptFileError(f"{self.where}: {name!r} {said}; it must be {wanted}; {WAY_OUT}")

    def get(self, name: str, kind: type[_Value], wanted: str) -> _Value:
        """The field's value, of just this type. Raises CorruptFileError."""
        value = self.values.get(name)
        if type(value) is not kind:
            raise self.fail(name, wanted)
        return value

    def number(self, name: str, least: int = 0, most: int = _MOST, step: int = 1) -> int:
        """A whole number from `least` to `most`, a multiple of `step`. Raises CorruptFileError."""
        wanted = f"a whole number from {least} to {most}" if least < most else str(least)
        wanted += f", a multiple of {step}" if step > 1 and least < most else ""
        value = self.get(name, int, wanted)
        if not least <= value <= most or value % step:
            raise self.fail(name, wanted)
        return value


def _read_listing(listed: Listed) -> tuple[int, int, dict[tuple[int, str], Region]]:
    """Experts of a layer, bytes of the file, and regions that lie within it."""
    num_experts, nbytes = listed.number("num_experts", 1), listed.number("nbytes", ALIGNMENT, step=ALIGNMENT)
    regions: dict[tuple[int, str], Region] = {}
    end = 0
    for number, values in enumerate(listed.get("regions", list, "a list")):
        where = f"{listed.where}: regions[{number}]"
        if not isinstance(values, dict):
            raise CorruptFileError(f"{where} is {quoted(values)}; it must be an object; {WAY_OUT}")
        fields = Listed(values, where)
        unknown = sorted(values.keys() - Region.__dataclass_fields__.keys())
        if unknown:
            raise fields.fail(unknown[0], "left out")
        layer, part = fields.number("layer"), fields.get("part", str, "a name")
        form = fields.get("form", dict, "an object")
        if (layer, part) in regions:
            raise fields.fail("part", f"another one than that of an earlier region of layer {layer}")
        size = fields.number("nbytes", ALIGNMENT, nbytes // num_experts, ALIGNMENT)
        # They lie one behind the other, as they were written: none may reach into another one.
        regions[layer, part] = Region(layer, part, form, fields.number("offset", end, end, ALIGNMENT), size)
        end += size * num_experts
    if end != nbytes:
        raise listed.fail("nbytes", f"{end}, where its regions end")
    return num_experts, nbytes, regions


class ExpertWriter:
    """Writes a new file. Each matrix is handed over once, in any order."""

    def __init__(self, path: Path, num_experts: int, identity: str) -> None:
        """identity: of what the experts were made from.

        Raises LoadError if another process is writing the file, or if the disk refuses.
        """
        self._path, self._num_experts, self._identity = path, num_experts, identity
        self._partial = path.with_name(f"{path.name}.partial")
        self.regions: dict[tuple[int, str], Region] = {}
        """Those that a matrix came for."""
        self._end = 0
        with _refused(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not claimed(self._file, self._partial):
                    raise LoadError(f"{path}: another process is writing it; start again when that one is done")
                os.ftruncate(self._file, 0)
            except BaseException:
                os.close(self._file)
                raise

    def write(self, layer: int, part: str, expert: int, form: dict[str, Any], data: Sequence[memoryview]) -> None:
        """The bytes of a matrix. Raises LoadError if another expert's has another form, or if the disk refuses."""
        nbytes = sum(piece.nbytes for piece in data)
        region = self.regions.get((layer, part))
        if region is None:
            size = ceil_div(nbytes, ALIGNMENT) * ALIGNMENT
            region = self.regions[layer, part] = Region(layer, part, form, self._end, size)
            self._end += size * self._num_experts
        if region.form != form or nbytes > region.nbytes:
            raise LoadError(
                f"{self._path}: {part} of expert {expert} in layer {layer} is {form}, and that of others {region.form};"
                " experts that are stored in different ways cannot be read from the disk"
            )
        with _refused(self._path):
            at = region.offset + expert * region.nbytes
            for piece in data:
                at += _write_all(self._file, piece, at)

    def close(self) -> None:
        """Everything is there."""
        with _refused(self._path):
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)
            listing(self._path).unlink(missing_ok=True)
            self._partial.replace(self._path)
            text = json.dumps(
                {
                    "version": _VERSION,
                    "identity": self._identity,
                    "num_experts": self._num_experts,
                    "nbytes": self._end,
                    "regions": [asdict(region) for region in self.regions.values()],
                }
            )
            partial = listing(self._path).with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(listing(self._path))
            os.close(self._file)

    def abandon(self) -> None:
        """What is not whole is removed."""
        with contextlib.suppress(OSError):
            if is_at(self._file, self._partial):  # else it has its name, and the partial one is another process's
                self._partial.unlink()
        os.close(self._file)


class ExpertFile:
    """A finished file. regions: by layer and part. Reading from several threads is safe."""

    def __init__(self, path: Path, regions: Mapping[tuple[int, str], Region], num_experts: int) -> None:
        self.path, self.regions, self.num_experts = path, regions, num_experts
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            # What is read is kept here, under a budget: a second copy in the system's cache would only take memory.
            self._file = os.open(path, flags | getattr(os, "O_DIRECT", 0))
        except OSError:
            self._file = os.open(path, flags)
        weakref.finalize(self, os.close, self._file)

    @staticmethod
    def find(path: Path, identity: str) -> ExpertFile | None:
        """The file at `path` if it is whole and made from `identity`; None otherwise.

        Raises CorruptFileError if the listing is there and says what cannot be, LoadError if it cannot be read.
        """
        if not (listing(path).exists() and path.exists()):
            return None
        try:
            values = read_json_object(listing(path))
        except CorruptFileError as error:
            raise CorruptFileError(f"{error}; {WAY_OUT}") from error
        if values.get("version") != _VERSION or values.get("identity") != identity:
            return None
        num_experts, nbytes, regions = _read_listing(Listed(values, str(listing(path))))
        with _refused(path):
            size = path.stat().st_size
        if size != nbytes:
            raise CorruptFileError(f"{path}: has {size} bytes, and was written with {nbytes}; {WAY_OUT}")
        return ExpertFile(path, regions, num_experts)

    def read(self, layer: int, part: str, expert: int, into: memoryview) -> None:
        """Fills `into`, which begins at a multiple of 4096 and has the region's nbytes. Raises LoadError."""
        region = self.regions[layer, part]
        at, done = region.offset + expert * region.nbytes, 0
        with _refused(self.path):
            while done < region.nbytes:
                got = os.preadv(self._file, [into[done : region.nbytes]], at + done)
                if got == 0:
                    raise LoadError(f"{self.path}: ends at byte {at + done}; it was cut short while it was in use")
                done += got


def listing(path: Path) -> Path:
    """The file that lists the regions of `path`."""
    return path.with_suffix(".json")


def _write_all(file: int, data: memoryview, at: int) -> int:
    done = 0
    flat = data.cast("B")
    while done < flat.nbytes:
        done += os.pwrite(file, flat[done:], at + done)
    return done


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a file into a LoadError."""
    try:
        yield
    except OSError as error:
        raise LoadError(
            f"{path}: {error.strerror or error}; free some space, or set FREEHOLD_HOME to another disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"{path}: {error.strerror or error}"
        ) from error

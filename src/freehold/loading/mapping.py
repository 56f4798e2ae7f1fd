"""A file's bytes in the address space of the process, read by the page when they are touched."""

from __future__ import annotations

import mmap
import os
import platform
import stat
import sys
from pathlib import Path

import torch

from freehold.core.errors import CorruptFileError, LoadError

# Python names this flag from 3.13 on. The number is the same on every Linux machine listed here.
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0)
if not _NORESERVE and sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64"):
    _NORESERVE = 0x4000


def open_regular(path: Path) -> int:
    """A descriptor for reading `path`, which must be a regular file or a link to one.

    Pipes and devices are refused without waiting on them. Raises LoadError when the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LoadError(f"{path}: cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LoadError(f"{path}: is not a regular file; a checkpoint consists of regular files, or links to them")
    return descriptor


class MappedFile:
    """One mapped file and views of it.

    The mapping is private: a write to a view stays in this process and never reaches the file. It reserves
    no memory, so that a file may be larger than the machine's RAM; for that reason tensors are mapped here
    and not by `safetensors.safe_open`, whose mapping Linux refuses beyond RAM and swap.

    The mapping lives as long as this object or any view of it. A file that is shortened while it is mapped
    ends the process with SIGBUS when the lost part is touched: replace checkpoints, do not rewrite them.
    """

    __slots__ = ("buffer", "nbytes", "path")

    def __init__(self, path: Path) -> None:
        """Raises LoadError if the file cannot be mapped, CorruptFileError if it is empty."""
        descriptor = open_regular(path)
        try:
            self.path = path
            self.nbytes = os.fstat(descriptor).st_size
            if self.nbytes == 0:
                raise CorruptFileError(f"{path}: the file is empty (0 bytes); fetch it again")
            self.buffer = mmap.mmap(
                descriptor,
                self.nbytes,
                flags=mmap.MAP_PRIVATE | _NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        except OSError as error:
            raise LoadError(f"{path}: its {self.nbytes} bytes cannot be mapped: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def release(self, offset: int, nbytes: int) -> None:
        """Lets the system have the memory of whole pages in this stretch. They are read from the file again when they
        are touched; what was written into views of them is lost."""
        begin, end = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """The bytes from `offset` on as a contiguous tensor, without a copy.

        The caller has checked that they lie within the file. Two exceptions to "without a copy": a tensor
        without elements has no bytes to view, and one that does not start at a multiple of its item size is
        copied, because vector instructions may not read it in place; LoadError if memory does not suffice.
        """
        count = 1
        for size in shape:
            count *= size
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        # torch keeps the mmap object alive, and nothing ever closes it by hand: a view cannot dangle.
        flat = torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=offset)
        if offset % dtype.itemsize:
            try:
                flat = flat.clone()
            except RuntimeError as error:  # torch's way to say that there is not enough memory
                raise LoadError(
                    f"{self.path}: the tensor at byte {offset} is not aligned, and there is no"
                    f" memory for a copy of its {count * dtype.itemsize} bytes; write the file"
                    " again with the safetensors library"
                ) from error
        return flat.view(shape)
